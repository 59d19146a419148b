//! A new connection to a backend, and why there is none.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::pool::Pool;
use super::send::Failure;
use crate::config::{BackendConfig, BackendUrl};
use crate::edge::wire::Wire;

/// EMFILE, ENFILE, ENOMEM, ENOBUFS and EADDRNOTAVAIL: what connecting lacks on this side.
const LOCAL_ERRORS: [i32; 5] = [24, 23, 12, 105, 99];

/// How long an address may say nothing before the next one is tried beside it (RFC 8305 §5).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Opens a connection.
///
/// # Errors
/// Nothing was sent.
pub(super) async fn connect(pool: &Pool, to: &BackendConfig) -> Result<Wire, Failure> {
    let connected = async {
        let stream = tcp(pool, &to.url).await?;
        // Heads and small bodies leave at once; large bodies are written in large pieces anyway.
        stream.set_nodelay(true)?;
        let Some(tls) = &to.tls else { return Ok(Wire::Plain(stream)) };
        let connector = TlsConnector::from(Arc::clone(&tls.rustls));
        let stream = connector.connect(tls.server_name.clone(), stream).await?;
        Ok(Wire::Tls(Box::new(stream.into())))
    };
    connected.await.map_err(unconnected)
}

async fn tcp(pool: &Pool, url: &BackendUrl) -> io::Result<TcpStream> {
    if let Ok(address) = url.host.parse::<IpAddr>() {
        return TcpStream::connect((address, url.port)).await;
    }
    let addresses = pool.names.resolve(&url.host).await?;
    let mut all = addresses.iter().map(|address| SocketAddr::new(*address, url.port));
    match (all.next(), all.len()) {
        (Some(only), 0) => TcpStream::connect(only).await,
        (first, _) => first_of(first.into_iter().chain(all)).await,
    }
}

/// Begins with the first address, and goes on to the next whenever one fails or says nothing for a while: one that is
/// dead does not use up the time for all.
async fn first_of(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let (mut attempts, mut failed) = (JoinSet::new(), io::ErrorKind::NotFound.into());
    loop {
        match addresses.next() {
            Some(address) => drop(attempts.spawn(TcpStream::connect(address))),
            None if attempts.is_empty() => return Err(failed),
            None => {}
        }
        match timeout(NEXT_AFTER, attempts.join_next()).await {
            Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
            Ok(Some(Ok(Err(error)))) => failed = error,
            Ok(Some(Err(_)) | None) | Err(_) => {}
        }
    }
}

fn unconnected(error: io::Error) -> Failure {
    if let Some(why) = tls_error(&error) {
        return Failure::Tls(reason(why));
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Failure::Tls("it ended the handshake without a word".into());
    }
    match error.raw_os_error() {
        Some(code) if LOCAL_ERRORS.contains(&code) => Failure::Local(error),
        _ => Failure::Connect(error.kind()),
    }
}

/// With TLS 1.3 a backend that wants another certificate, or one at all, says so when the handshake has ended for us: what
/// was sent meanwhile it has not read.
pub(super) fn refused_certificate(error: &io::Error) -> Option<Failure> {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, UnknownCA, UnsupportedCertificate,
    };
    match tls_error(error)? {
        why @ Error::AlertReceived(
            AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | UnknownCA
            | UnsupportedCertificate,
        ) => Some(Failure::Tls(reason(why))),
        _ => None,
    }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// In words that say what to do about it, and no address.
fn reason(why: &Error) -> String {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    match why {
        Error::InvalidCertificate(why) => match why {
            Expired | ExpiredContext { .. } => "its certificate has expired".into(),
            NotValidYet | NotValidYetContext { .. } => "its certificate is not valid yet".into(),
            UnknownIssuer => "its certificate is of no authority that is trusted here (tls.ca)".into(),
            NotValidForName | NotValidForNameContext { .. } => {
                "its certificate is for another name (tls.server_name)".into()
            }
            other => format!("its certificate cannot be trusted: {other:?}"),
        },
        Error::InvalidMessage(_) => "it does not speak TLS".into(),
        Error::AlertReceived(alert) => format!("it ended the handshake: {alert:?} (tls.client_cert)"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    /// A port that answers nothing: its queue is full.
    async fn silent() -> (SocketAddr, Socket, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut line = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            line.push(stream.unwrap());
        }
        (address, socket, line)
    }

    #[tokio::test]
    async fn a_dead_address_does_not_stand_before_a_live_one() {
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (dead, _socket, _line) = silent().await;
        let refusing = SocketAddr::from(([127, 0, 0, 1], 1));
        let all = [dead, refusing, live.local_addr().unwrap()];
        // A second is what the whole has by default.
        let stream = timeout(Duration::from_secs(20), first_of(all.into_iter())).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
        assert!(first_of([refusing].into_iter()).await.is_err());
        assert!(first_of([].into_iter()).await.is_err());
    }
}
