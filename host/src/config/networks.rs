//! Networks of addresses, as lists of `"10.0.0.0/8"`; a bare address is a network of one.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Value;

use super::notation::{Notation, Wrong, describe, text};

/// Any number of networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Networks(Vec<IpNet>);

impl From<Networks> for Vec<IpNet> {
    fn from(networks: Networks) -> Self {
        networks.0
    }
}

impl Notation for Networks {
    const FORM: &'static str = "a list of addresses and networks such as [\"10.0.0.0/8\", \"192.168.1.7\"]";

    fn read(value: &Value) -> Result<Self, Wrong> {
        value.as_array().ok_or(Wrong::Form)?.iter().map(network).collect::<Result<_, _>>().map(Self)
    }
}

fn network(value: &Value) -> Result<IpNet, Wrong> {
    let written = text(value).ok().and_then(|text| {
        let alone = |_| text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(alone).ok()
    });
    let wrong = || Wrong::Because(format!("{} is no address or network such as \"10.0.0.0/8\"", describe(value)));
    written.ok_or_else(wrong)
}
