//! Serves the metrics by HTTP: one request a connection, a bounded number of connections, and a
//! bound on the time of each.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use sandbox_core::directories::{self, Lock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::kept::Kept;
use super::scrape::Scrape;

/// The connections at a time. More wait until one ends.
const CONNECTIONS: usize = 64;

/// The time in which a client has to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `CONTENT_TYPE` of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected an IP address and a port such as 127.0.0.1:9760 or [::1]:9760, or unix: \
                 and an absolute path; found {text:?}"
            )
        };
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(expected()),
            None => text.parse().map(Self::Tcp).map_err(|_| expected()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
pub(crate) struct Server {
    socket: Socket,
    kept: Arc<Mutex<Kept>>,
    room: Arc<Semaphore>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    /// The error says why the address cannot be had.
    pub(crate) async fn listen(address: &Address, kept: Kept) -> Result<Self> {
        let socket = match address {
            Address::Tcp(tcp) => TcpListener::bind(tcp).await.map(Socket::Tcp),
            Address::Unix(path) => {
                remove_dead(path);
                UnixListener::bind(path).map(|listener| Socket::Unix(listener, path.clone()))
            }
        };
        let socket = socket.with_context(|| format!("--listen: listen on {address}"))?;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self { socket, kept: Arc::new(Mutex::new(kept)), room })
    }

    /// Returns the address, with the port that the kernel has chosen where 0 was asked for.
    pub(crate) fn address(&self) -> Result<Address> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => Address::Tcp(listener.local_addr()?),
            Socket::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Serves for ever.
    pub(crate) async fn serve(&self) -> Result<Infallible> {
        loop {
            let place = self.room.clone().acquire_owned().await?;
            let accepted = match &self.socket {
                Socket::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| self.begin(stream, place))
                }
                Socket::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| self.begin(stream, place))
                }
            };
            match accepted {
                Ok(()) => {}
                // The client has gone again, or descriptors are short for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn begin(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        place: OwnedSemaphorePermit,
    ) {
        let kept = self.kept.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answer(&kept, &request);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut http = http1::Builder::new();
            http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // A client that is too slow, or that speaks no HTTP, is not worth a word.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
        });
    }
}

/// Removes a socket at which nobody listens any more. Only one at a time does so: another could
/// listen there by then.
fn remove_dead(path: &Path) {
    let directory = path.parent().filter(|above| !above.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let Ok(Lock::Taken(_alone)) = directories::lock(directory) else { return };
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    let refused = || {
        std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && refused() {
        let _ = std::fs::remove_file(path);
    }
}

fn answer(kept: &Mutex<Kept>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => metrics(kept, request.headers()),
        (&Method::GET, "/healthz") => plain(StatusCode::OK, "ok\n"),
        (_, "/metrics" | "/healthz") => {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            refused
        }
        _ => plain(StatusCode::NOT_FOUND, "only /metrics and /healthz are served\n"),
    };
    if !response.headers().contains_key(CONTENT_TYPE) {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn metrics(kept: &Mutex<Kept>, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let scrape = Scrape::read(&mut kept.lock().unwrap_or_else(PoisonError::into_inner));
    let open = wants_open_metrics(headers);
    let encoded = scrape.and_then(|scrape| encode(scrape, open));
    match encoded {
        Ok(body) => {
            let mut response = plain(StatusCode::OK, body);
            let kind = if open { OPEN_METRICS } else { prometheus_text::CONTENT_TYPE };
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    }
}

fn encode(scrape: Scrape, open: bool) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut body = String::new();
    match open {
        true => text::encode(&mut body, &registry),
        false => prometheus_text::encode(&mut body, &registry),
    }
    .context("encode the metrics")?;
    Ok(body)
}

/// Whether a client would rather have OpenMetrics than the older text (RFC 9110, 12.5.1).
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut open, mut older) = (0.0_f32, 0.0_f32);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        match name.as_str() {
            "application/openmetrics-text" => open = open.max(quality),
            "text/plain" | "text/*" | "*/*" => older = older.max(quality),
            _ => {}
        }
    }
    open > 0.0 && open >= older
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_two_kinds() {
        let address = |text: &str| text.parse::<Address>();
        assert_eq!(address("127.0.0.1:9760").unwrap().to_string(), "127.0.0.1:9760");
        assert_eq!(address("[::1]:0").unwrap().to_string(), "[::1]:0");
        assert_eq!(address("unix:/run/x").unwrap(), Address::Unix("/run/x".into()));
        for wrong in ["", "9760", "localhost:9760", "unix:", "unix:x", "127.0.0.1:99999"] {
            let error = address(wrong).unwrap_err();
            assert!(error.contains("expected an IP address and a port"), "{error}");
        }
    }

    #[test]
    fn the_clients_choice_counts() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
            wants_open_metrics(&headers)
        };
        // Prometheus, curl, a browser.
        assert!(wants(
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.7,*/*;q=0.1"
        ));
        assert!(!wants("*/*"));
        assert!(!wants("text/html,application/xml;q=0.9,*/*;q=0.8"));
        assert!(wants("application/openmetrics-text"));
        assert!(!wants("application/openmetrics-text;q=0.2, text/plain"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants_open_metrics(&HeaderMap::new()));
    }
}
