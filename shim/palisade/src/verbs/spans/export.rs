//! Sends spans to a collector, by OTLP over HTTP.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The time that a collector has for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// Where a collector listens.
#[derive(Clone, Debug)]
pub(super) struct Endpoint(Uri);

impl Endpoint {
    /// Parses a URL.
    ///
    /// # Errors
    /// The error says what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => Ok(Self(uri)),
            (Some("https"), _) => Err("this command speaks no TLS; expected a collector on this \
                                       node, as in http://127.0.0.1:4318/v1/traces"
                .into()),
            _ => Err("expected a URL as in http://127.0.0.1:4318/v1/traces".into()),
        }
    }

    /// Sends one request.
    ///
    /// # Errors
    /// Fails if the collector cannot be reached, does not answer in time, or refuses.
    pub(super) async fn send(&self, request: &Value) -> Result<()> {
        let answer = timeout(PATIENCE, self.post(request.to_string()));
        let what = || format!("send spans to {self}");
        let answer = answer.await.with_context(|| {
            format!("{}: no answer within {} seconds", what(), PATIENCE.as_secs())
        })?;
        let (status, text) = answer.with_context(what)?;
        if !status.is_success() {
            bail!("send spans to {self}: {status}: {}", text.escape_debug());
        }
        Ok(())
    }

    async fn post(&self, body: String) -> Result<(StatusCode, String)> {
        let (host, port) = (self.0.host().unwrap_or_default(), self.0.port_u16().unwrap_or(80));
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = self.0.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::post(path)
            .header(HOST, self.0.authority().map_or(host, |authority| authority.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        Ok((status, text.unwrap_or_default()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
