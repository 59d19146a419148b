//! Multipart forms: the fields by name, the files measured.

use memchr::memmem;

use super::super::refusal::Refusal;
use super::{Asked, Media};

/// More parts than any request of these APIs has.
const PART_LIMIT: usize = 1024;

struct Part<'a> {
    name: String,
    /// Whether it has a file name, and so is a file.
    file: bool,
    kind: String,
    content: &'a [u8],
}

/// Reads a form; one that is cut or malformed is refused as a whole.
pub(super) fn read(content_type: &str, body: &[u8]) -> Result<Asked, Refusal> {
    let parts = boundary(content_type).and_then(|boundary| split(&boundary, body)).ok_or(Refusal::BadForm)?;
    let mut asked = Asked { copies: 1, ..Asked::default() };
    for part in parts {
        let text = || String::from_utf8_lossy(part.content).into_owned();
        match part.name.as_str() {
            "model" => asked.model = Some(text()),
            "stream" => asked.stream = Some(part.content == b"true"),
            "response_format" => asked.response_format = Some(text()),
            "n" => asked.copies = text().parse().unwrap_or(1),
            _ if part.file => {
                asked.parts += 1;
                asked.images.push(Media { kind: part.kind, bytes: part.content.len() as u64 });
            }
            _ => asked.prompt_tokens += part.content.len() as u64 / 4,
        }
    }
    Ok(asked)
}

fn boundary(content_type: &str) -> Option<String> {
    let (_, rest) = content_type.split_once("boundary=")?;
    let boundary = rest.split(';').next()?.trim().trim_matches('"');
    // 70 is the RFC's limit.
    (!boundary.is_empty() && boundary.len() <= 70).then(|| boundary.to_owned())
}

fn split<'a>(boundary: &str, body: &'a [u8]) -> Option<Vec<Part<'a>>> {
    let delimiter = format!("\r\n--{boundary}");
    // The first delimiter needs no line end before it.
    let mut rest = body.strip_prefix(delimiter.trim_start().as_bytes())?;
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let after = rest.strip_prefix(b"\r\n")?;
        let end = memmem::find(after, delimiter.as_bytes())?;
        parts.push(part(after.get(..end)?)?);
        if parts.len() > PART_LIMIT {
            return None;
        }
        rest = after.get(end + delimiter.len()..)?;
    }
    Some(parts)
}

fn part(bytes: &[u8]) -> Option<Part<'_>> {
    let head_end = memmem::find(bytes, b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..head_end)?).ok()?;
    let field = |wanted: &str| {
        let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let disposition = field("content-disposition")?;
    let parameter = |wanted: &str| {
        let all = disposition.split(';').filter_map(|parameter| parameter.trim().split_once('='));
        all.into_iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.trim_matches('"').to_owned())
    };
    Some(Part {
        name: parameter("name")?,
        file: parameter("filename").is_some(),
        kind: field("content-type").unwrap_or("file").to_owned(),
        content: bytes.get(head_end + 4..)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"xyz\"";

    fn form() -> Vec<u8> {
        b"--xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n\
          --xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n\
          ab\r\n--xy\r\ncd\r\n--xyz--\r\n"
            .to_vec()
    }

    #[test]
    fn fields_and_files_are_told_apart() {
        let asked = read(TYPE, &form()).unwrap();
        assert_eq!(asked.model.as_deref(), Some("whisper"));
        assert_eq!(asked.images, [Media { kind: "audio/wav".to_owned(), bytes: 12 }]);
        assert_eq!(asked.parts, 1);
    }

    #[test]
    fn a_form_cut_anywhere_is_refused() {
        let form = form();
        for end in 0..form.len() - 4 {
            assert!(read(TYPE, &form[..end]).is_err(), "{end}");
        }
        assert!(read("multipart/form-data", &form).is_err());
    }
}
