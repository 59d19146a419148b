//! TLS with clients: the handshake of a connection that was just accepted.
//!
//! It runs in the connection's own task, so that nobody waits for one who stalls. A handshake ends with the certificate
//! it began with; a rotation concerns those that come after.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::wire::Wire;
use crate::config::ListenTls;

/// A handshake is two round trips and some arithmetic: whoever needs longer holds a connection for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Every TLS connection begins with a record of this type (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 0x16;
/// How long one who speaks HTTP in the clear may take to read that this is wrong.
const LAST_WORD: Duration = Duration::from_millis(250);

/// The connection, ready for HTTP.
///
/// # Errors
/// Where the handshake fails, or does not end in time.
pub async fn open(stream: TcpStream, tls: Option<&ListenTls>) -> io::Result<Wire> {
    let Some(tls) = tls else { return Ok(Wire::Plain(stream)) };
    let shaken = timeout(HANDSHAKE_TIMEOUT, shake_hands(stream, tls)).await.map_err(io::Error::from).flatten();
    shaken.inspect_err(|error| tracing::debug!("no TLS with a client: {error}"))
}

async fn shake_hands(stream: TcpStream, tls: &ListenTls) -> io::Result<Wire> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first != [HANDSHAKE_RECORD] {
        refuse(stream).await;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "spoke in the clear"));
    }
    let accepted = TlsAcceptor::from(Arc::clone(&tls.rustls)).accept(stream).await?;
    Ok(Wire::Tls(Box::new(accepted.into())))
}

/// Says in the clear, for one who speaks so, that TLS is spoken here.
async fn refuse(mut stream: TcpStream) {
    const BODY: &str = r#"{"error":{"message":"This port speaks TLS: use https://.","type":"invalid_request_error","param":null,"code":"tls_required"}}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed with something unread, it would be reset, and the answer lost.
        let mut scratch = [0; 4096];
        while stream.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever does not listen to it has left.
    let _ = timeout(LAST_WORD, said).await;
}
