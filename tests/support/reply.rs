//! One whole answer as a client read it, over whichever client.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// A header's text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of text"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("not JSON ({why}): {self:?}"))
    }

    /// Itself, where its status is 200.
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{self:?}");
        self
    }

    /// Itself, where it is an error of this status and code in OpenAI's shape.
    pub fn refused(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status.as_u16(), self.error_code().as_str()), (status, code), "{self:?}");
        self
    }

    /// `error.code` of an OpenAI-shaped error; empty where there is none.
    pub fn error_code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Name of the backend that answered.
    pub fn backend(&self) -> &str {
        self.header("x-vision-proxy-backend")
    }

    /// How many backends were tried.
    pub fn attempts(&self) -> u32 {
        let text = self.header("x-vision-proxy-attempts");
        text.parse().unwrap_or_else(|_| panic!("attempts are {text:?}: {self:?}"))
    }
}
