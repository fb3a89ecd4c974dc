//! CRI's streaming sessions, Exec, Attach and PortForward, over a websocket as
//! Kubernetes' clients use it (`v4.channel.k8s.io`: each message begins with
//! the number of its channel).

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, http::HeaderValue};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::containerd::Containerd;
use crate::wait::deadline;

/// The channels of exec and attach sessions.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A session.
#[derive(Debug)]
pub struct Session<'a> {
    containerd: &'a Containerd,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Standard output so far.
    pub stdout: Vec<u8>,
    /// Standard error so far.
    pub stderr: Vec<u8>,
    /// Its result: JSON of a Kubernetes `Status`.
    pub status: Vec<u8>,
}

impl<'a> Session<'a> {
    /// Connects to the URL of a session, which CRI returned.
    pub fn connect(containerd: &'a Containerd, url: &str) -> Session<'a> {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.as_str().into_client_request().expect("the URL of a session");
        let protocol = HeaderValue::from_static("v4.channel.k8s.io");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let connected = containerd.block_on(async { connect_async(request).await });
        let (socket, _) = connected.unwrap_or_else(|e| panic!("connect to {url}: {e}"));
        let (stdout, stderr, status) = (Vec::new(), Vec::new(), Vec::new());
        Session { containerd, socket, stdout, stderr, status }
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        let socket = &mut self.socket;
        let sent = self.containerd.block_on(async { socket.send(Message::binary(message)).await });
        sent.expect("send on the session");
    }

    /// Writes to the standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        self.send(STDIN, bytes);
    }

    /// Sends bytes to the first port of a port-forwarding session.
    pub fn write_port(&mut self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    /// Sets the size of the terminal.
    pub fn resize(&mut self, width: u16, height: u16) {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        self.send(RESIZE, size.as_bytes());
    }

    /// Receives one message. Returns false once the session is over.
    fn receive(&mut self) -> bool {
        let socket = &mut self.socket;
        let received = self
            .containerd
            .block_on(async { tokio::time::timeout(deadline(), socket.next()).await });
        let received = received.unwrap_or_else(|_| {
            panic!(
                "the session sends nothing more; so far: {}",
                String::from_utf8_lossy(&self.stdout)
            )
        });
        match received {
            Some(Ok(Message::Binary(message))) if !message.is_empty() => self.take(&message),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return false,
            Some(Ok(_)) => {}
        }
        true
    }

    fn take(&mut self, message: &[u8]) {
        let (channel, bytes) = (message[0], &message[1..]);
        match channel {
            // A port-forwarding session replies on the channel of the request.
            STDIN | STDOUT => self.stdout.extend_from_slice(bytes),
            STDERR => self.stderr.extend_from_slice(bytes),
            ERROR => self.status.extend_from_slice(bytes),
            other => panic!("a message on channel {other}"),
        }
    }

    /// Waits until the output so far contains a text.
    pub fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let so_far = String::from_utf8_lossy(&self.stdout).into_owned();
            assert!(self.receive(), "the session ended before {text:?}; so far: {so_far:?}");
        }
    }

    /// Receives everything until the end of the session. Returns the exit code.
    pub fn finish(&mut self) -> i32 {
        while self.receive() {}
        let status = String::from_utf8_lossy(&self.status);
        let status: serde_json::Value = serde_json::from_str(&status).expect("a status in JSON");
        if status["status"] == "Success" {
            return 0;
        }
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|c| c.parse().ok());
        code.unwrap_or_else(|| panic!("no exit code in {status}"))
    }
}
