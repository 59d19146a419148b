//! Names in forms, as audio and image requests carry them.

use crate::support::*;

const PATH: &str = "/v1/audio/transcriptions";

/// A form of these parts: header fields and content of each.
fn form(boundary: &str, parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (fields, content) in parts {
        bytes.extend_from_slice(format!("--{boundary}\r\n{fields}\r\n\r\n").as_bytes());
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    bytes
}

/// Content that looks like the form around it, and holds every byte.
fn audio() -> Vec<u8> {
    let all = (0..=255).collect::<Vec<u8>>();
    [
        b"\r\n--edg\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nother\r\n".as_slice(),
        &all,
        b"\r\n--edg",
        &all,
    ]
    .concat()
}

const FILE: &str =
    "Content-Disposition: form-data; name=\"file\"; filename=\"a \\\"model\\\".wav\"\r\nContent-Type: audio/wav";
const MODEL_PART: &str = "Content-Disposition: form-data; name=\"model\"";
const LANGUAGE: &str = "content-disposition:form-data;name=language";

async fn post(proxy: &Proxy, boundary_parameter: &str, body: Vec<u8>) -> Reply {
    let kind = format!("multipart/form-data; boundary={boundary_parameter}");
    whole(proxy.client.request("POST", PATH).header("content-type", kind).body(body)).await
}

#[tokio::test]
async fn only_the_name_of_a_form_changes() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let audio = audio();
    let file = (FILE, audio.as_slice());
    for boundary in ["edge", "\"edge\""] {
        for last in [false, true] {
            let parts = |name: &'static [u8]| {
                let (model, language) = ((MODEL_PART, name), (LANGUAGE, b"en".as_slice()));
                form("edge", &if last { [file, language, model] } else { [model, file, language] })
            };
            post(&proxy, boundary, parts(MODEL.as_bytes())).await.ok();
            let request = backend.requests().pop().expect("a request");
            assert!(request.body == parts(NATIVE.as_bytes()), "boundary {boundary}, name last: {last}: {request:?}");
            assert_eq!(request.header("content-type"), format!("multipart/form-data; boundary={boundary}"));
        }
    }
}

#[tokio::test]
async fn a_name_is_found_however_its_part_is_written() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    for part in [
        "content-disposition: form-data; name=model",
        "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=\"model\"",
        "CONTENT-DISPOSITION:form-data;\tname=\"model\"",
    ] {
        post(&proxy, "edge", form("edge", &[(FILE, b"x"), (part, MODEL.as_bytes())])).await.ok();
        let expected = form("edge", &[(FILE, b"x"), (part, NATIVE.as_bytes())]);
        assert_eq!(backend.requests().pop().expect("a request").body, expected, "{part}");
    }
}

#[tokio::test]
async fn a_form_may_be_cut_at_any_byte() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let parts: [(&str, &[u8]); 2] = [(FILE, b"\r\n--edg\r\n--"), (MODEL_PART, MODEL.as_bytes())];
    let (sent, expected) = (form("edge", &parts), form("edge", &[parts[0], (MODEL_PART, NATIVE.as_bytes())]));
    let fields = [("Content-Type", "multipart/form-data; boundary=edge"), ("Transfer-Encoding", "chunked")];
    let mut raw = Raw::connect(proxy.listen).await;
    for at in 1..sent.len() {
        let (one, two) = sent.split_at(at);
        raw.send(request_head("POST", PATH, &fields)).await;
        raw.send(in_chunks([one, two])).await;
        raw.reply().await.ok();
        assert_eq!(backend.requests().pop().expect("a request").body, expected, "cut at {at}");
    }
}

#[tokio::test]
async fn forms_that_cannot_be_routed_are_refused() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let name = (MODEL_PART, MODEL.as_bytes());
    post(&proxy, "edge", form("edge", &[name, (FILE, b"x"), name])).await.refused(400, "duplicate_model");
    post(&proxy, "edge", form("edge", &[(FILE, b"x")])).await.refused(400, "missing_model");
    post(&proxy, "edge", form("edge", &[(MODEL_PART, b"nobody-serves-this")])).await.refused(404, "model_not_found");
    for broken in [b"".to_vec(), b"no form".to_vec(), form("other", &[name]), b"--edge\r\n\r\n".to_vec()] {
        let reply = post(&proxy, "edge", broken).await;
        assert_eq!(reply.status, 400, "{reply:?}");
    }
    assert_eq!(backend.request_count(), 0);
}
