//! For tests: random JSON, and the ways to cut bytes into pieces.
//!
//! Invariant: every sample follows from the seed of its `Rng`, so that a failure can be had again.

use fastrand::Rng;

/// Text with everything that has to be escaped, or looks like a member that must not be touched.
const TEXTS: [&str; 14] = [
    "",
    "a",
    "plain words",
    "\"model\":\"x\"",
    "{\"model\":\"x\",\"usage\":{\"prompt_tokens\":9}}",
    "\\",
    "\\\"",
    "\n\r\t\u{8}\u{c}\0\u{1f}",
    "é世界",
    "😀\u{10ffff}",
    "\ndata: {\"model\":\"x\"}\n\n",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "sixty-four bytes and one quote behind them, all in one long run:\"",
    "/",
];

const NUMBERS: [&str; 12] =
    ["0", "-0", "1", "-17", "1024", "0.5", "1.25e10", "1E+2", "2e-3", "12345678901234567890", "1e400", "-9.99E-99"];

const SPACES: [&str; 8] = ["", "", "", " ", "\n", "\r\n", "\t", "  \n  "];

/// White space, or none.
pub(crate) fn space(rng: &mut Rng) -> &'static str {
    rng.choice(SPACES).unwrap()
}

/// Some text, not encoded.
pub(crate) fn text(rng: &mut Rng) -> String {
    (0..rng.usize(1..4)).map(|_| rng.choice(TEXTS).unwrap()).collect()
}

/// `text` as JSON, each character escaped or not as chance has it where JSON leaves the choice.
pub(crate) fn string(rng: &mut Rng, text: &str) -> String {
    let mut out = String::from("\"");
    for char in text.chars() {
        match (rng.u8(..8), char) {
            (0 | 1, _) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    out += &if rng.bool() { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
                }
            }
            (2, '/') => out += "\\/",
            (_, '"' | '\\' | '\0'..='\u{1f}') => {
                let json = serde_json::Value::from(char.to_string()).to_string();
                out += &json[1..json.len() - 1];
            }
            _ => out.push(char),
        }
    }
    out + "\""
}

/// Any value with at most `depth` containers in one another.
pub(crate) fn value(rng: &mut Rng, depth: u32) -> String {
    match rng.u8(..if depth == 0 { 5 } else { 8 }) {
        0 => rng.choice(["true", "false", "null"]).unwrap().to_owned(),
        1 => rng.choice(NUMBERS).unwrap().to_owned(),
        2..=4 => {
            let text = text(rng);
            string(rng, &text)
        }
        5 => {
            let elements: Vec<_> = (0..rng.usize(..4)).map(|_| padded(rng, |rng| value(rng, depth - 1))).collect();
            format!("[{}]", if elements.is_empty() { space(rng).to_owned() } else { elements.join(",") })
        }
        _ => {
            let members: Vec<_> = (0..rng.usize(..4)).map(|at| other_member(rng, at, depth - 1)).collect();
            object(rng, &members)
        }
    }
}

/// A member whose key no reader asks for at the top level; `at` makes it the only one of its name.
pub(crate) fn other_member(rng: &mut Rng, at: usize, depth: u32) -> String {
    let key = format!("{}{at}", text(rng));
    let value = value(rng, depth);
    member(rng, &key, &value)
}

/// A member; its value is JSON already.
pub(crate) fn member(rng: &mut Rng, key: &str, value: &str) -> String {
    let key = padded(rng, |rng| string(rng, key));
    format!("{key}:{}{value}{}", space(rng), space(rng))
}

/// An object of these members.
pub(crate) fn object(rng: &mut Rng, members: &[String]) -> String {
    format!("{{{}}}", if members.is_empty() { space(rng).to_owned() } else { members.join(",") })
}

fn padded(rng: &mut Rng, inner: impl FnOnce(&mut Rng) -> String) -> String {
    format!("{}{}{}", space(rng), inner(rng), space(rng))
}

/// Something that is wrong with `json`, or not: some bytes changed, lost, doubled or moved.
pub(crate) fn broken(rng: &mut Rng, json: &str) -> Vec<u8> {
    const BYTES: &[u8] = b"\"\\{}[]:,01-+.eEtfnu/ \n\0\x1f\x7f\xef\xbb\xbf\xff\xc3x";
    let mut bytes = json.as_bytes().to_vec();
    for _ in 0..rng.usize(1..3) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.usize(..bytes.len());
        let other = rng.choice(BYTES).copied().unwrap();
        match rng.u8(..5) {
            0 => bytes[at] = other,
            1 => bytes.insert(at, other),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => bytes.swap(at, 0),
        }
    }
    bytes
}

/// Calls `check` with `bytes` cut in two at every place, cut into single bytes, and cut at random.
pub(crate) fn each_division(rng: &mut Rng, bytes: &[u8], mut check: impl FnMut(&[&[u8]])) {
    for at in 0..=bytes.len() {
        check(&[&bytes[..at], &bytes[at..]]);
    }
    check(&bytes.chunks(1).collect::<Vec<_>>());
    for _ in 0..8 {
        let longest = rng.usize(1..=bytes.len() + 1);
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(rng.usize(..=longest.min(rest.len())));
            pieces.push(piece);
            rest = next;
        }
        check(&pieces);
    }
}
