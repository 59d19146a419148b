//! Raw HTTP/1 from end to end: whatever a client sends, a backend sees at most the requests that were meant, each
//! well-formed and framed in exactly one way; the client sees as many answers, and no more.

mod answers;
mod cases;

use cases::{CASES, Case};

use crate::support::*;

/// Sent behind each case: where the connection goes on, it must be understood as what it is.
const LAST: &str = "GET /health HTTP/1.1\r\nHost: corpus\r\nConnection: close\r\nX-Request-Id: the-last\r\n\r\n";

/// The statuses of all answers on a connection, in order, but for the last request's.
fn statuses(name: &str, mut wire: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !wire.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut fields);
        let parsed = answer.parse(wire).unwrap_or_else(|why| panic!("{name}: {why}: {}", wire.escape_ascii()));
        let httparse::Status::Complete(head) = parsed else { panic!("{name}: cut short: {}", wire.escape_ascii()) };
        let field = |name: &str| {
            let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let status = answer.code.expect("a status");
        // Nothing that hyper or the proxy itself answers is in chunks; an answer to HEAD has no body.
        let is_to_head = name == "a head" && statuses.is_empty();
        let length: usize =
            field("content-length").filter(|_| !is_to_head).map_or(0, |length| length.parse().expect("a length"));
        assert_eq!(field("transfer-encoding"), None, "{name}");
        if status >= 200 && field("x-request-id") != Some("the-last") {
            statuses.push(status);
        }
        wire = &wire[head + length..];
    }
    statuses
}

fn is_expected(case: &Case, statuses: &[u16]) -> bool {
    let wanted: Vec<_> = case.statuses.split(' ').collect();
    let is_right = |(wanted, status): (&&str, &u16)| wanted.split('|').any(|right| right == status.to_string());
    wanted.len() == statuses.len() && wanted.iter().zip(statuses).all(is_right)
}

#[tokio::test]
async fn a_backend_sees_what_was_meant_and_nothing_else() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(&recorder.config()).await;
    let mut failures = Vec::new();
    for case in CASES {
        let before = recorder.requests().len();
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send_if_wanted([case.raw, LAST].concat()).await;
        let (wire, _) = raw.rest().await;
        let statuses = statuses(case.name, &wire);
        let reached = recorder.requests().split_off(before);
        if !is_expected(case, &statuses) {
            failures.push(format!("{}: {statuses:?} instead of {}", case.name, case.statuses));
        }
        if reached.len() != case.reached {
            failures.push(format!("{}: {} reached the backend", case.name, reached.len()));
        }
        let odd = reached.iter().filter_map(|request| Some((problem(request)?, request.escape_ascii())));
        failures.extend(odd.map(|(problem, request)| format!("{}: {problem}: {request}", case.name)));
    }
    assert!(CASES.len() >= 88, "the corpus shrank");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(recorder.odd_bytes(), "", "bytes that belong to no request");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_for_that() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(&recorder.config()).await;
    let chat = |fields: &str| format!("POST {CHAT} HTTP/1.1\r\nHost: corpus\r\n{fields}\r\n");
    let many: String = (0..101).map(|number| format!("X-{number}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "x".repeat(40_000));
    let target = format!("POST /{} HTTP/1.1\r\nHost: corpus\r\n\r\n", "x".repeat(70_000));
    for (what, head, right) in [
        ("many fields", chat(&many), &[431][..]),
        ("a long field", chat(&long), &[431]),
        ("a long target", target, &[414, 431]),
    ] {
        let mut raw = Raw::connect(proxy.listen).await;
        raw.send_if_wanted(head).await;
        let (wire, _) = raw.rest().await;
        let statuses = statuses(what, &wire);
        assert!(matches!(statuses[..], [status] if right.contains(&status)), "{what}: {statuses:?}");
    }
    assert_eq!(recorder.requests().len(), 0);
}

/// The host that a client asks for is the target's, and a backend is told of that one.
#[tokio::test]
async fn an_absolute_target_outweighs_the_host_field() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    let body = chat_body().to_string();
    let mut raw = Raw::connect(proxy.listen).await;
    let head =
        format!("POST http://target.test{CHAT} HTTP/1.1\r\nHost: field.test\r\nContent-Length: {}\r\n\r\n", body.len());
    raw.send(head + &body).await;
    raw.reply().await.ok();
    let request = backend.request();
    assert_eq!((request.target.as_str(), request.header("x-forwarded-host").as_str()), (CHAT, "target.test"));
    assert_eq!(request.header("host"), backend.address.to_string());
}
