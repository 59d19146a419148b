//! Anything that speaks the OpenAI API: a list of models is all it is asked for.
//!
//! The list is common to most engines; what each adds to an entry is read in its own file. That a key is missing
//! for the list (401, 403), or that there is none (404), says nothing of health and leaves the models unknown.

use serde_json::Value;

use super::served::{self, ServedModel};
use super::{Answer, Health, Question, Report};

/// Where the list of models is.
pub(super) const MODELS: &str = "/v1/models";

pub(super) const QUESTIONS: &[Question] = &[Question { path: MODELS, wanted: |_| true, read: read_health_and_models }];

fn read_health_and_models(answer: &Answer<'_>, report: &mut Report) {
    report.health = Health::of(answer);
    report.models = models(answer, |entry| model(entry).into_iter().collect());
}

/// The models of a list in OpenAI's form.
pub(super) fn models(answer: &Answer<'_>, read: impl Fn(&Value) -> Vec<ServedModel>) -> Option<Vec<ServedModel>> {
    served::read_list(answer.json()?.get("data")?, read)
}

/// The models of an engine that serves only what it has loaded.
pub(super) fn loaded_models(answer: &Answer<'_>) -> Option<Vec<ServedModel>> {
    models(answer, |entry| model(entry).map(|model| ServedModel { loaded: Some(true), ..model }).into_iter().collect())
}

/// One entry of the list.
pub(super) fn model(entry: &Value) -> Option<ServedModel> {
    let mut model = ServedModel::named(&entry["id"])?;
    model.vision = takes(&entry["architecture"]["input_modalities"], "image");
    model.note_number("created", &entry["created"]);
    model.note_text("owned_by", &entry["owned_by"]);
    model.note_number("max_model_len", &entry["max_model_len"]);
    Some(model)
}

/// Whether a list of abilities has this one; unknown where there is no list.
pub(super) fn takes(abilities: &Value, wanted: &str) -> Option<bool> {
    Some(abilities.as_array()?.iter().any(|ability| ability == wanted))
}

/// Whether the list is signed by one engine throughout. A mixed one is a gateway's, which is no engine.
pub(super) fn all_owned_by(answer: &Answer<'_>, owner: &str) -> bool {
    let list = answer.json().unwrap_or_default();
    list["data"].as_array().is_some_and(|data| !data.is_empty() && data.iter().all(|entry| entry["owned_by"] == owner))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(status: u16, body: &str) -> Report {
        let mut report = Report::default();
        read_health_and_models(&Answer { status, body: body.as_bytes() }, &mut report);
        report
    }

    #[test]
    fn reads_the_list() {
        let body = json!({"object": "list", "data": [
            {"id": "gpt-oss", "object": "model", "created": 1_700_000_000, "owned_by": "me", "permission": [{}], "root": "/srv/m"},
            {"id": "eye", "architecture": {"input_modalities": ["text", "image"]}, "max_model_len": 8192},
            {"id": "blind", "architecture": {"input_modalities": ["text"]}, "created": "yesterday"},
        ]});
        let report = report(200, &body.to_string());
        assert_eq!(report.health, Health::Ready);
        let models = report.models.unwrap();
        let seen: Vec<_> = models.iter().map(|m| (m.native.as_str(), m.alias, m.loaded, m.vision)).collect();
        assert_eq!(
            seen,
            [("gpt-oss", false, None, None), ("eye", false, None, Some(true)), ("blind", false, None, Some(false))]
        );
        assert_eq!(Value::Object(models[0].details.clone()), json!({"created": 1_700_000_000, "owned_by": "me"}));
        assert_eq!(Value::Object(models[1].details.clone()), json!({"max_model_len": 8192}));
        assert_eq!(Value::Object(models[2].details.clone()), json!({}));
    }

    #[test]
    fn whatever_answers_is_up_unless_it_says_otherwise() {
        for (status, body) in
            [(401, ""), (403, "{}"), (404, "<html>"), (429, "slow down"), (200, "<html>hello</html>"), (204, "")]
        {
            let report = report(status, body);
            assert_eq!((report.health, report.models), (Health::Ready, None), "{status} {body:?}");
        }
        for (status, body, reason) in [
            (500, "", "answered 500"),
            (503, r#"{"error":{"message":"Loading model","code":503}}"#, "Loading model"),
            (503, r#"{"error":"unhealthy"}"#, "unhealthy"),
            (503, r#"{"detail":"starting"}"#, "starting"),
            (502, "<html>Bad gateway</html>", "answered 502"),
            (503, r#"{"error":{"message":"two\nlines"}}"#, "answered 503"),
        ] {
            let report = report(status, body);
            assert_eq!((report.health, report.models), (Health::NotReady(reason.into()), None), "{status} {body:?}");
        }
    }

    #[test]
    fn no_list_is_unknown_and_an_empty_one_is_known() {
        for body in
            ["", "{", "[]", "{}", r#"{"data":{}}"#, r#"{"data":[1]}"#, r#"{"data":[{"id":3}]}"#, r#""data""#, "null"]
        {
            assert_eq!(report(200, body).models, None, "{body:?}");
        }
        assert_eq!(report(200, r#"{"data":[]}"#).models, Some(vec![]));
        assert_eq!(report(200, r#"{"object":"list","data":null}"#).models, Some(vec![]));
    }
}
