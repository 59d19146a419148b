//! Where an answer's body ends (RFC 9112 §6–7), as a decoder that is fed what was read.
//!
//! Pure. Strict: what is not framed exactly is an error, for a lenient reader is what smuggling needs.

use bytes::{BufMut, BytesMut};

/// Digits of a chunk size: 2^60 is more than any answer.
const SIZE_DIGITS: u8 = 15;
/// Bytes of chunk extensions and trailers, together, that are read past before the peer is given up.
const SKIPPED_LIMIT: u32 = 16 * 1024;

/// How the body of an answer is delimited, and how far it was read.
#[derive(Debug)]
pub enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunks),
    /// Everything until the peer closes.
    UntilClose,
}

/// The framing was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFraming;

/// What a piece of input came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The body goes on.
    More,
    /// The body is complete; `rest` bytes of the input lie behind it.
    Done { rest: usize },
}

impl Framing {
    /// Appends the payload in `input` to `out`.
    pub fn decode(&mut self, input: &[u8], out: &mut BytesMut) -> Result<Progress, BadFraming> {
        match self {
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                out.put_slice(input.get(..take).unwrap_or_default());
                *left -= take as u64;
                Ok(if *left == 0 { Progress::Done { rest: input.len() - take } } else { Progress::More })
            }
            Self::Chunked(chunks) => chunks.decode(input, out),
            Self::UntilClose => {
                out.put_slice(input);
                Ok(Progress::More)
            }
        }
    }

    /// Whether a close by the peer is the proper end here.
    pub fn ends_with_close(&self) -> bool {
        matches!(self, Self::UntilClose)
    }
}

/// The chunked coding (RFC 9112 §7.1); extensions and trailers are read past.
#[derive(Debug, Default)]
pub struct Chunks {
    at: At,
    skipped: u32,
}

#[derive(Debug, Clone, Copy, Default)]
enum At {
    #[default]
    SizeStart,
    Size {
        value: u64,
        digits: u8,
    },
    /// White space between a size and what may follow it.
    Blank {
        value: u64,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
}

impl Chunks {
    fn decode(&mut self, input: &[u8], out: &mut BytesMut) -> Result<Progress, BadFraming> {
        let mut rest = input;
        while let Some((&byte, behind)) = rest.split_first() {
            if let At::Data { left } = self.at {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let (payload, behind) = rest.split_at(take);
                out.put_slice(payload);
                rest = behind;
                let left = left - take as u64;
                self.at = if left == 0 { At::DataCr } else { At::Data { left } };
                continue;
            }
            rest = behind;
            if matches!((self.at, byte), (At::LastLf, b'\n')) {
                return Ok(Progress::Done { rest: rest.len() });
            }
            self.at = self.step(byte)?;
        }
        Ok(Progress::More)
    }

    /// One byte of what is not payload.
    fn step(&mut self, byte: u8) -> Result<At, BadFraming> {
        Ok(match (self.at, byte) {
            (At::SizeStart, _) => At::Size { value: hex(byte)?, digits: 1 },
            (At::Size { value, .. } | At::Blank { value }, b'\r') => At::SizeLf { value },
            (At::Size { value, .. } | At::Blank { value }, b';') => At::Extension { value },
            (At::Size { value, .. } | At::Blank { value }, b' ' | b'\t') => self.skip(At::Blank { value })?,
            (At::Size { value, digits }, _) if digits < SIZE_DIGITS => {
                At::Size { value: value << 4 | hex(byte)?, digits: digits + 1 }
            }
            (At::Extension { value }, b'\r') => At::SizeLf { value },
            (At::Extension { .. } | At::TrailerStart | At::Trailer, b'\n') => return Err(BadFraming),
            (At::Extension { value }, _) => self.skip(At::Extension { value })?,
            (At::SizeLf { value: 0 }, b'\n') => At::TrailerStart,
            (At::SizeLf { value }, b'\n') => At::Data { left: value },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::SizeStart,
            (At::TrailerStart, b'\r') => At::LastLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::TrailerStart | At::Trailer, _) => self.skip(At::Trailer)?,
            _ => return Err(BadFraming),
        })
    }

    fn skip(&mut self, to: At) -> Result<At, BadFraming> {
        self.skipped += 1;
        if self.skipped > SKIPPED_LIMIT { Err(BadFraming) } else { Ok(to) }
    }
}

fn hex(byte: u8) -> Result<u64, BadFraming> {
    char::from(byte).to_digit(16).map(u64::from).ok_or(BadFraming)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_in(pieces: &[&[u8]]) -> Result<(Vec<u8>, Progress), BadFraming> {
        let mut framing = Framing::Chunked(Chunks::default());
        let mut out = BytesMut::new();
        let mut last = Progress::More;
        for piece in pieces {
            last = framing.decode(piece, &mut out)?;
        }
        Ok((out.to_vec(), last))
    }

    #[test]
    fn chunks_decode_the_same_at_every_split() {
        let wire = b"5\r\nhello\r\n1 ;ext=\"a\"\r\n \r\n00B\r\nwide world!\r\n0\r\nX-T: 1\r\n\r\n";
        for at in 0..wire.len() {
            let (payload, progress) = decode_in(&[&wire[..at], &wire[at..]]).unwrap();
            assert_eq!(
                (payload.as_slice(), progress),
                (&b"hello wide world!"[..], Progress::Done { rest: 0 }),
                "split at {at}"
            );
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_counted() {
        let (_, progress) = decode_in(&[b"0\r\n\r\nHTTP/1.1"]).unwrap();
        assert_eq!(progress, Progress::Done { rest: 8 });
        let mut out = BytesMut::new();
        assert_eq!(Framing::Length(2).decode(b"abc", &mut out), Ok(Progress::Done { rest: 1 }));
    }

    #[test]
    fn broken_chunks_are_errors() {
        for wire in [
            &b"5\nhello\r\n"[..],
            b"\r\n",
            b"g\r\n",
            b"5\r\nhelloX\r\n",
            b"-1\r\n",
            b" 5\r\n",
            b"2 5\r\n",
            b"2 x\r\n",
            b"5;a\nhello",
            b"0\r\n\n",
            b"1000000000000000\r\n",
            b"0x5\r\nhello\r\n",
            b"0\r\na\n\r\n",
        ] {
            assert_eq!(decode_in(&[wire]).unwrap_err(), BadFraming, "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn endless_extensions_and_trailers_are_given_up() {
        let long = vec![b'x'; SKIPPED_LIMIT as usize + 2];
        assert!(decode_in(&[b"5;", &long]).is_err());
        assert!(decode_in(&[b"0\r\n", &long]).is_err());
    }
}
