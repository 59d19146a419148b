//! Sockets that were opened by whoever started this process (systemd's socket activation, `sd_listen_fds(3)`).

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, bail};
use listenfd::ListenFd;

/// The sockets, by what they are for.
#[derive(Debug, Default)]
pub struct Handed {
    pub(super) client: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
}

impl Handed {
    /// Takes them over; none where there are none, or where they are another process's (`LISTEN_PID`).
    ///
    /// # Errors
    /// Where there are some that cannot be used.
    pub fn take() -> anyhow::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut fds = ListenFd::from_env();
        let mut handed = Self::default();
        for at in 0..fds.len() {
            let name = names.get(at).copied().unwrap_or_default();
            let listener =
                fds.take_tcp_listener(at).with_context(|| format!("the socket {name:?} that was handed over"))?;
            let Some(listener) = listener else { continue };
            if handed.place(name).replace(listener).is_some() {
                bail!(
                    "the socket {name:?} that was handed over is one too many: one `client` and one `admin` are of use"
                );
            }
        }
        Ok(handed)
    }

    /// Where a socket of this name belongs: any other name is the name of a unit, and then the order says it.
    fn place(&mut self, name: &str) -> &mut Option<TcpListener> {
        match name {
            "client" => &mut self.client,
            "admin" => &mut self.admin,
            _ if self.client.is_none() => &mut self.client,
            _ => &mut self.admin,
        }
    }

    /// Their addresses, which the configuration is to be checked with: for applications, and for the admin API.
    ///
    /// # Errors
    /// What the system says.
    pub fn addresses(&self) -> anyhow::Result<(Option<SocketAddr>, Option<SocketAddr>)> {
        let of = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok((of(&self.client)?, of(&self.admin)?))
    }
}
