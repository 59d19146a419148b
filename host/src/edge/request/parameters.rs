//! The parameters of a header's value: `first; name=value; name="quoted value"`.
//!
//! Invariant: what different parsers might read differently is refused, not guessed at.

use std::borrow::Cow;

/// The value does not follow the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A parameter's name as it was written, and its value without quotes and backslashes.
pub(super) type Parameter<'a> = (&'a [u8], Cow<'a, [u8]>);

/// A header's value, read from the left.
pub(super) struct Parameters<'a> {
    rest: &'a [u8],
}

impl<'a> Parameters<'a> {
    /// What stands before the first `;`, and the parameters behind it.
    pub(super) fn split(value: &'a [u8]) -> (&'a [u8], Self) {
        let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        let (first, rest) = value.split_at_checked(end).unwrap_or_default();
        (first.trim_ascii(), Self { rest })
    }

    /// The next parameter; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Parameter<'a>>, Malformed> {
        self.rest = self.rest.trim_ascii();
        let Some((b';', rest)) = self.rest.split_first() else {
            return if self.rest.is_empty() { Ok(None) } else { Err(Malformed) };
        };
        self.rest = rest.trim_ascii();
        if self.rest.is_empty() {
            return Ok(None);
        }
        let name = self.take_while(is_token);
        let Some((b'=', rest)) = self.rest.split_first() else { return Err(Malformed) };
        self.rest = rest;
        let value = match rest.split_first() {
            Some((b'"', quoted)) => self.quoted(quoted)?,
            _ => Cow::Borrowed(self.take_while(|byte| byte > b' ' && !matches!(byte, b';' | b'"' | 0x7f))),
        };
        if name.is_empty() { Err(Malformed) } else { Ok(Some((name, value))) }
    }

    fn take_while(&mut self, belongs: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !belongs(*byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        taken
    }

    /// The text up to the closing quote; what a backslash precedes stands for itself.
    fn quoted(&mut self, quoted: &'a [u8]) -> Result<Cow<'a, [u8]>, Malformed> {
        let mut value = Cow::Borrowed(quoted.get(..0).unwrap_or_default());
        let mut bytes = quoted.iter().copied().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.rest = quoted.get(at + 1..).unwrap_or_default();
                    return Ok(value);
                }
                b'\\' => value.to_mut().push(bytes.next().ok_or(Malformed)?.1),
                _ => match &mut value {
                    Cow::Borrowed(plain) => *plain = quoted.get(..=at).unwrap_or_default(),
                    Cow::Owned(decoded) => decoded.push(byte),
                },
            }
        }
        Err(Malformed)
    }
}

/// The characters of an HTTP token (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Vec<(String, String)>, Malformed> {
        let (_, mut parameters) = Parameters::split(value.as_bytes());
        let mut read = Vec::new();
        while let Some((name, value)) = parameters.next()? {
            read.push((String::from_utf8(name.to_vec()).unwrap(), String::from_utf8(value.into_owned()).unwrap()));
        }
        Ok(read)
    }

    #[test]
    fn parameters() {
        for (value, parameters) in [
            ("a", vec![]),
            ("a;", vec![]),
            (" a ; b=c ", vec![("b", "c")]),
            ("a;b=c;d=\"e\"", vec![("b", "c"), ("d", "e")]),
            ("a; b=\"\"; c=", vec![("b", ""), ("c", "")]),
            (r#"a; b="c;d=\"e\\\f"; g=h"#, vec![("b", "c;d=\"e\\f"), ("g", "h")]),
            ("a; b*=utf-8''c", vec![("b*", "utf-8''c")]),
            ("a; b=\"é\"", vec![("b", "é")]),
        ] {
            let expected: Vec<_> =
                parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(read(value), Ok(expected), "{value}");
        }
        for value in
            ["a; b", "a; =c", "a; b=\"c", "a; b=\"c\\", "a; b=\"c\"d", "a; b=c d", "a; b =c", "a;; b=c", "a; b=c\"d\""]
        {
            assert_eq!(read(value), Err(Malformed), "{value}");
        }
        assert_eq!(Parameters::split(b" a/b ;c=d").0, b"a/b");
    }
}
