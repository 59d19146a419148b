//! Raw HTTP/2 from end to end: whatever frames a client sends, a backend sees at most the requests that were meant, each
//! well-formed and framed in exactly one way; what is malformed costs a stream or the connection, as RFC 9113 says.

mod cases;

use cases::{Case, LAST, STREAM, cases};

use crate::support::frames::{Outcome, exchange};
use crate::support::*;

/// How a case ended, in the words of the table.
fn ended(case: &Case, outcome: &Outcome) -> String {
    if let Some(why) = &outcome.ended {
        return format!("connection {why}");
    }
    // The connection goes on, and so a request behind the case is answered as ever.
    match outcome.streams.get(&LAST) {
        Some(status) if status == "200" => {}
        other => return format!("{}: the last request: {other:?}", case.name),
    }
    outcome.streams.get(&STREAM).cloned().unwrap_or_else(|| "nothing".into())
}

#[tokio::test]
async fn a_backend_sees_what_was_meant_and_nothing_else() {
    let recorder = Recorder::start().await;
    let proxy = Proxy::start(&recorder.config()).await;
    let (cases, mut failures) = (cases(), Vec::new());
    for case in &cases {
        let before = recorder.requests().len();
        let outcome = exchange(proxy.listen, &case.bytes(), &[STREAM, LAST]).await;
        let ended = ended(case, &outcome);
        if !case.ends.split('|').any(|right| right == ended) {
            failures.push(format!("{}: {ended} instead of {}", case.name, case.ends));
        }
        let reached = recorder.requests().split_off(before);
        if reached.len() != usize::from(ended == "200") {
            failures.push(format!("{}: {ended}, and {} reached the backend", case.name, reached.len()));
        }
        let odd = reached.iter().filter_map(|request| Some((problem(request)?, request.escape_ascii())));
        failures.extend(odd.map(|(problem, request)| format!("{}: {problem}: {request}", case.name)));
        let text = reached.iter().map(|request| String::from_utf8_lossy(request).into_owned()).collect::<String>();
        let missing = case.sees.iter().filter(|seen| !text.contains(&format!("\r\n{seen}\r\n")));
        failures.extend(missing.map(|seen| format!("{}: no {seen:?} in {text:?}", case.name)));
    }
    assert!(cases.len() >= 130, "the corpus shrank: {}", cases.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(recorder.odd_bytes(), "", "bytes that belong to no request");
    proxy.falls_idle().await;
}
