//! `/__simulate/…`: what a simulation has seen, and how it is told to behave while it runs. Never subject to a fault.
//!
//! `GET stats`, `GET last` (`?polls`: the last poll), `GET fault`, `POST fault` (replaces all that are active; `{"fault":null}` clears),
//! `POST slots` (`{"slots":N}`).

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response};
use serde_json::{Value, json};

use super::body::Body;
use super::fault::{Fault, Faults};
use super::stats;
use super::whole::Whole;
use super::{Simulation, hold};

const PREFIX: &str = "/__simulate";
/// A control request is a line of JSON.
const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// More slots than any engine has; each is a line in llama.cpp's `/slots`.
const SLOT_LIMIT: u64 = 65_536;

/// Whether a path (or the start of one) is for the simulation and not for its engine.
pub(super) fn is_control(path: &str) -> bool {
    path.starts_with(PREFIX)
}

/// Answers a control request, always in JSON.
pub(super) async fn answer(simulation: &Simulation, head: &Parts, body: Incoming) -> Response<Body> {
    let body = Limited::new(body, BODY_LIMIT_BYTES).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let answer = match (&head.method, path) {
        (&Method::GET, "/stats") => Ok(stats::report(simulation)),
        (&Method::GET, "/last") => Ok(simulation.stats.last(head.uri.query() == Some("polls"))),
        (&Method::GET, "/fault") => Ok(hold(&simulation.faults).to_json()),
        (&Method::POST, "/fault") => change_faults(simulation, &json),
        (&Method::POST, "/slots") => change_slots(simulation, &json),
        _ => Err("there is GET stats, last, fault and POST fault, slots".to_owned()),
    };
    let (status, value) = match answer {
        Ok(value) => (200, value),
        Err(reason) => (400, json!({"error": reason})),
    };
    let body = value.to_string().into();
    Whole { status, kind: "application/json", body }.into_response()
}

fn change_faults(simulation: &Simulation, json: &Value) -> Result<Value, String> {
    let fault = Fault::from_json(json).map_err(|unknown| unknown.to_string())?;
    let mut faults = hold(&simulation.faults);
    *faults = Faults::new(fault.into_iter().collect());
    Ok(faults.to_json())
}

fn change_slots(simulation: &Simulation, json: &Value) -> Result<Value, String> {
    let slots = json.get("slots").and_then(Value::as_u64).filter(|slots| *slots <= SLOT_LIMIT);
    let slots = slots.ok_or_else(|| format!("{{\"slots\":N}} with N up to {SLOT_LIMIT}"))?;
    simulation.slots.resize(usize::try_from(slots).unwrap_or(usize::MAX));
    Ok(json!({"slots": slots}))
}
