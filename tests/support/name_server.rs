//! A name server on a port of its own that says what a test tells it to, and a proxy whose system resolver asks it.
//!
//! Whom the C library asks stands in `/etc/resolv.conf`, which no test may change. So a few lines of C, built with the compiler
//! that the proxy's own dependencies need, tell it another port just before each lookup.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::{Folder, Proxy};

const LIBRARY: &str = include_str!("name_server.c");
/// Bytes of a message's head (RFC 1035 §4.1.1).
const HEAD: usize = 12;
/// Type A, class IN.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];

/// What it says of a name.
#[derive(Clone)]
pub enum Says {
    /// Where it is; nowhere, where there are none.
    At(Vec<Ipv4Addr>),
    /// That there is no such name (NXDOMAIN).
    Unknown,
    /// That it cannot tell (SERVFAIL).
    Failed,
    /// The same of addresses by IPv4; of others, that there are none.
    HalfFailed,
    Nothing,
}

#[derive(Default)]
struct Told {
    names: HashMap<String, Says>,
    /// Questions for an address of it so far.
    asked: HashMap<String, usize>,
}

pub struct NameServer {
    address: SocketAddr,
    told: Arc<Mutex<Told>>,
    answering: JoinHandle<()>,
}

impl NameServer {
    /// It knows no name yet.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let (address, told) = (socket.local_addr().expect("an address"), Arc::<Mutex<Told>>::default());
        let answering = tokio::spawn(answer(socket, Arc::clone(&told)));
        Self { address, told, answering }
    }

    /// From now on.
    pub fn says(&self, name: &str, says: Says) {
        self.told.lock().expect("no poison").names.insert(name.to_owned(), says);
    }

    /// The same: where it is.
    pub fn points(&self, name: &str, addresses: &[[u8; 4]]) {
        self.says(name, Says::At(addresses.iter().copied().map(Ipv4Addr::from).collect()));
    }

    /// How often it was asked for a name.
    pub fn asked(&self, name: &str) -> usize {
        self.told.lock().expect("no poison").asked.get(name).copied().unwrap_or_default()
    }

    /// Runs the proxy with this configuration; it asks nobody else.
    pub async fn proxy(&self, config: &str) -> Proxy {
        let folder = Folder::new();
        let (source, library) = (folder.write("name_server.c", LIBRARY), folder.path().join("name_server.so"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(cc.status().is_ok_and(|status| status.success()), "{cc:?}");
        Proxy::start_with(config, folder, |command| {
            command.env("LD_PRELOAD", library).env("NAME_SERVER_PORT", self.address.port().to_string());
        })
        .await
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

async fn answer(socket: UdpSocket, told: Arc<Mutex<Told>>) {
    let mut question = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut question).await.expect("a question");
        let answer = told.lock().expect("no poison").answer(&question[..length]);
        if let Some(answer) = answer {
            // Who has given up meanwhile does not want it.
            _ = socket.send_to(&answer, from).await;
        }
    }
}

impl Told {
    /// The answer to one question (RFC 1035 §4), where there is one.
    fn answer(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = HEAD;
        while message[at] > 0 {
            let end = at + 1 + usize::from(message[at]);
            labels.push(std::str::from_utf8(&message[at + 1..end]).expect("a name of text"));
            at = end;
        }
        let kind = &message[at + 1..at + 5];
        let name = labels.join(".");
        if kind == ADDRESS {
            *self.asked.entry(name.clone()).or_default() += 1;
        }
        let (code, addresses) = match self.names.get(&name) {
            Some(Says::At(addresses)) if kind == ADDRESS => (0, addresses.as_slice()),
            // Of the kinds that it is asked for beside, as for IPv6, it has none.
            Some(Says::HalfFailed) if kind == ADDRESS => (2, Default::default()),
            Some(Says::At(_) | Says::HalfFailed) => (0, Default::default()),
            Some(Says::Unknown) | None => (3, Default::default()),
            Some(Says::Failed) => (2, Default::default()),
            Some(Says::Nothing) => return None,
        };
        // Its number; an answer, recursion wanted and available; one question, these answers, nothing else.
        let count = u8::try_from(addresses.len()).expect("few addresses");
        let head = [&message[..2], &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]].concat();
        // Each of the name of the question, for five seconds.
        let records = addresses
            .iter()
            .map(|address| [&[0xc0, HEAD as u8][..], &ADDRESS, &[0, 0, 0, 5, 0, 4], &address.octets()].concat());
        Some([head, message[HEAD..at + 5].to_vec(), records.collect::<Vec<_>>().concat()].concat())
    }
}
