//! Frames of HTTP/2, written and read by hand: no library writes wrong ones (RFC 9113 §4.1, §6).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const PRIORITY: u8 = 0x2;
pub const RST_STREAM: u8 = 0x3;
pub const SETTINGS: u8 = 0x4;
pub const PUSH_PROMISE: u8 = 0x5;
pub const PING: u8 = 0x6;
pub const GOAWAY: u8 = 0x7;
pub const WINDOW_UPDATE: u8 = 0x8;
pub const CONTINUATION: u8 = 0x9;

pub const END_STREAM: u8 = 0x1;
/// Of SETTINGS and PING.
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const WITH_PRIORITY: u8 = 0x20;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The codes of errors (RFC 9113 §7), by their numbers.
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client says first, with these settings.
pub fn opening(settings: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()
}

/// Fields as literals without indexing, letter by letter (RFC 7541 §6.2.2).
pub fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter().flat_map(|(name, value)| [&[0][..], &text(name), &text(value)].concat()).collect()
}

/// RFC 7541 §5.1 and §5.2, without Huffman's code.
fn text(text: &str) -> Vec<u8> {
    const PREFIX: usize = 127;
    let mut bytes = vec![text.len().min(PREFIX) as u8];
    if let Some(mut rest) = text.len().checked_sub(PREFIX) {
        while rest >= 128 {
            bytes.push((rest % 128) as u8 | 0x80);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend(text.as_bytes());
    bytes
}

/// What became of a connection.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of each stream, what came first: the status of an answer, or the code of its reset.
    pub streams: BTreeMap<u32, String>,
    /// Why the connection was ended; empty where it was ended without a word.
    pub ended: Option<String>,
}

/// Sends these bytes; reads until each of these streams has ended, or the connection has.
pub async fn exchange(address: SocketAddr, bytes: &[u8], streams: &[u32]) -> Outcome {
    let connection = TcpStream::connect(address).await.expect("connect");
    let (mut read, mut write) = connection.into_split();
    // It may be ended before all is sent.
    _ = soon("room to send", write.write_all(bytes)).await;
    let (mut outcome, mut open) = (Outcome::default(), streams.to_vec());
    while !open.is_empty() {
        let mut head = [0; 9];
        let frame = soon("a frame", async {
            read.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            read.read_exact(&mut payload).await.map(|_| payload)
        });
        let Ok(payload) = frame.await else {
            outcome.ended.get_or_insert_default();
            break;
        };
        let [_, _, _, kind, flags, number @ ..] = head;
        let stream = u32::from_be_bytes(number);
        match kind {
            HEADERS => drop(outcome.streams.entry(stream).or_insert_with(|| status(&payload))),
            RST_STREAM => drop(outcome.streams.entry(stream).or_insert_with(|| code(&payload))),
            GOAWAY => outcome.ended = Some(code(&payload[4..])),
            _ => {}
        }
        if kind == RST_STREAM || (matches!(kind, HEADERS | DATA) && flags & END_STREAM > 0) {
            open.retain(|other| *other != stream);
        }
    }
    outcome
}

fn code(payload: &[u8]) -> String {
    let number = payload.first_chunk().map_or(u32::MAX, |number| u32::from_be_bytes(*number));
    CODES.get(number as usize).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// `:status`, which stands first: one of those in the static table, or three digits in Huffman's code (RFC 7541,
/// appendices A and B), where it stands in no table yet.
fn status(block: &[u8]) -> String {
    const INDEXED: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
    match *block {
        [index @ 0x88..=0x8e, ..] => INDEXED[usize::from(index) - 0x88].to_owned(),
        [0x48, length, ref rest @ ..] => {
            let bits = rest[..usize::from(length & 0x7f)].iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            let mut left = u32::from(length & 0x7f) * 8;
            let mut digits = String::new();
            while digits.len() < 3 {
                let next = |count: u32| (bits >> (left - count)) as u8 & ((1 << count) - 1);
                // 0 to 2 are five bits long, 3 to 9 six.
                let (digit, length) = if next(5) < 3 { (next(5), 5) } else { (next(6) - 0b01_1001 + 3, 6) };
                digits.push(char::from(b'0' + digit));
                left -= length;
            }
            digits
        }
        _ => format!("{:02x?}", &block[..block.len().min(6)]),
    }
}
