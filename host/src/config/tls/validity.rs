//! Until when a certificate is valid. rustls tells nobody, so its few fields before that are passed over here (RFC 5280
//! §4.1). Pure.

use std::time::SystemTime;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, which holds the version.
const VERSION: u8 = 0xa0;

/// The end of a certificate's validity; `None` where it is no certificate.
pub(super) fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (certificate, _) = content(SEQUENCE, der)?;
    let (signed, _) = content(SEQUENCE, certificate)?;
    let signed = content(VERSION, signed).map_or(signed, |(_, rest)| rest);
    let (_serial, rest) = content(INTEGER, signed)?;
    let (_algorithm, rest) = content(SEQUENCE, rest)?;
    let (_issuer, rest) = content(SEQUENCE, rest)?;
    let (validity, _) = content(SEQUENCE, rest)?;
    let (_, _not_before, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

fn content(wanted: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(der)?;
    (tag == wanted).then_some((content, rest))
}

/// Tag and content of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // So many bytes of length follow; no certificate is longer than four of them say.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ`, where 50 to 99 are of the last century, or with four digits of the year (RFC 5280 §4.1.2.5).
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let text = match tag {
        UTC_TIME if text < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| text.get(from..to);
    let (date, time) = ([part(0, 4)?, part(4, 6)?, part(6, 8)?], [part(8, 10)?, part(10, 12)?, part(12, 14)?]);
    humantime::parse_rfc3339(&format!("{}T{}Z", date.join("-"), time.join(":"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_until(year: i32, month: u8, day: u8) -> Option<String> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["gpu".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, month, day);
        let certificate = parameters.self_signed(&key).unwrap();
        not_after(certificate.der()).map(|at| humantime::format_rfc3339_seconds(at).to_string())
    }

    #[test]
    fn both_ways_of_writing_a_time_are_read() {
        assert_eq!(valid_until(1999, 12, 31).unwrap(), "1999-12-31T00:00:00Z");
        assert_eq!(valid_until(2026, 2, 28).unwrap(), "2026-02-28T00:00:00Z");
        assert_eq!(valid_until(2049, 1, 1).unwrap(), "2049-01-01T00:00:00Z");
        assert_eq!(valid_until(4096, 2, 29).unwrap(), "4096-02-29T00:00:00Z");
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let key = rcgen::KeyPair::generate().unwrap();
        let whole = rcgen::CertificateParams::new(vec!["gpu".to_owned()]).unwrap().self_signed(&key).unwrap();
        for end in 0..whole.der().len() {
            assert_eq!(not_after(&whole.der()[..end]), None, "{end}");
        }
        assert_eq!(not_after(b"\x30\x84\xff\xff\xff\xff\x30"), None);
        assert!(not_after(whole.der()).is_some());
    }
}
