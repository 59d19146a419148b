//! What a fault does in the engine's place: break the connection, answer something else, or name another model.

use hyper::Response;
use hyper::header::{CONNECTION, HeaderValue, LOCATION, RETRY_AFTER};
use tokio::time::sleep;

use super::body::{Body, Cut, silence};
use super::exchange::Exchange;
use super::fault::Kind;
use super::refusal::Refusal;
use super::whole::Whole;
use super::wire::Switch;

/// Where a redirect leads: nobody is there, and whoever asks there followed it.
const ELSEWHERE: HeaderValue = HeaderValue::from_static("http://127.0.0.1:9/elsewhere");

/// Faults that do not wait for the body.
pub(super) fn break_at_head(fault: &Kind, switch: &Switch) -> Result<(), Cut> {
    match fault {
        // On a connection that was open before: close it, as a server that is gone would have.
        Kind::Refuse => Err(Cut),
        Kind::Reset => {
            switch.reset();
            Err(Cut)
        }
        _ => Ok(()),
    }
}

impl Exchange<'_> {
    /// Faults that a part of the body brings on.
    pub(super) fn breaks_at_body(&self, body: &[u8]) -> Result<(), Cut> {
        let holds = |text: &String| memchr::memmem::find(body, text.as_bytes()).is_some();
        match self.fault {
            Some(Kind::Poison(text)) if holds(text) => Err(Cut),
            // As an engine dies that runs into a bug of its own: at once, with all it was doing.
            Some(Kind::Deadly(text)) if holds(text) => std::process::abort(),
            _ => Ok(()),
        }
    }

    /// What a fault answers. Where there is a slot to get, a hang gets it first.
    pub(super) async fn instead(&self, gets_a_slot: bool) -> Result<Option<Response<Body>>, Cut> {
        let Some(fault) = self.fault else { return Ok(None) };
        match fault {
            Kind::Hang if !gets_a_slot => {
                silence().await;
                Ok(None)
            }
            Kind::CloseBeforeAnswer => Err(Cut),
            Kind::Garbage => {
                // What it says never gets out; that it is the last word on the connection does.
                let mut response = Whole::empty(200).into_response();
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                Ok(Some(response))
            }
            Kind::Loading => Ok(Some(self.fail(&Refusal::Loading))),
            Kind::Status { status, retry_after } => {
                let mut response = self.fail(&Refusal::Failure(*status));
                if let Some(value) = retry_after.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
                    response.headers_mut().insert(RETRY_AFTER, value);
                }
                Ok(Some(response))
            }
            Kind::StrayBody(status) => Ok(Some(Whole::empty(*status).into_response())),
            Kind::Redirect(status) => {
                let mut response = Whole::empty(*status).into_response();
                response.headers_mut().insert(LOCATION, ELSEWHERE);
                Ok(Some(response))
            }
            Kind::SlowHealth(delay) => {
                sleep(*delay).await;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The name that a request for `asked` is answered under. Where another model took the place, only that is known.
    pub(super) fn answers_as(&self, asked: Option<&str>) -> Result<String, Refusal> {
        match self.fault {
            Some(Kind::OtherModel(other)) if asked == Some(other) => Ok(other.clone()),
            Some(Kind::OtherModel(_)) => Err(Refusal::NoModel(asked.unwrap_or_default().to_owned())),
            _ => self.simulation.answers_as(asked),
        }
    }

    /// What is said of its models, or of the one that has taken their place.
    pub(super) fn told(&self, whole: Whole) -> Response<Body> {
        match self.fault {
            Some(Kind::OtherModel(other)) => whole.of_another(&self.simulation.models, other).into_response(),
            _ => whole.into_response(),
        }
    }

    pub(super) fn models(&self) -> &[String] {
        match self.fault {
            Some(Kind::OtherModel(other)) => std::slice::from_ref(other),
            _ => &self.simulation.models,
        }
    }
}
