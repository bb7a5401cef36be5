//! A client that speaks HTTP/2 frame by frame, so that it can do so badly.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::within;

/// Types of frames, and flags (RFC 9113, 6).
pub const DATA: u8 = 0;
/// Opens a call.
pub const HEADERS: u8 = 1;
/// Weighs a call; without meaning nowadays.
pub const PRIORITY: u8 = 2;
/// Ends a call.
pub const RST_STREAM: u8 = 3;
/// Parameters of the connection.
pub const SETTINGS: u8 = 4;
/// To be answered.
pub const PING: u8 = 6;
/// No more calls.
pub const GOAWAY: u8 = 7;
/// More may be sent.
pub const WINDOW_UPDATE: u8 = 8;
/// More of the headers before.
pub const CONTINUATION: u8 = 9;
/// Of DATA and HEADERS: nothing more comes on this call.
pub const END_STREAM: u8 = 1;
/// Of SETTINGS and PING: an answer.
pub const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION: no CONTINUATION comes.
pub const END_HEADERS: u8 = 4;

/// A frame as the server sent it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// E.g. [`DATA`].
    pub kind: u8,
    /// E.g. [`END_STREAM`].
    pub flags: u8,
    /// Of which call; 0 for the connection.
    pub stream: u32,
    /// The rest.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header field as it is, neither compressed nor remembered (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        // Lengths of seven bits, or seven bits full and the rest in groups of seven.
        let mut bytes = Vec::new();
        match text.len().checked_sub(127) {
            None => bytes.push(u8::try_from(text.len()).unwrap()),
            Some(mut rest) => {
                bytes.push(127);
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [&[0][..], &text(name), &text(value)].concat()
}

/// The headers of a call to `Generate`.
pub fn call_headers() -> Vec<u8> {
    call_headers_of("/baichuan.v1.InferenceService/Generate")
}

/// The headers of a call.
pub fn call_headers_of(path: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .iter()
    .flat_map(|(name, value)| field(name, value))
    .collect()
}

/// The connection's preface and empty settings.
fn greeting() -> Vec<u8> {
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &frame(SETTINGS, 0, 0, &[])[..],
    ]
    .concat()
}

/// One connection.
pub struct Peer {
    socket: TcpStream,
    heard: Vec<u8>,
}

impl Peer {
    /// [`Self::silent`], or none where the server takes no connection.
    pub async fn silent_or_none(server: &str) -> Option<Self> {
        let socket = TcpStream::connect(server).await.ok()?;
        Some(Self {
            socket,
            heard: Vec::new(),
        })
    }

    /// [`Self::greeted`], or none where the server takes no connection.
    pub async fn greeted_or_none(server: &str) -> Option<Self> {
        let mut peer = Self::silent_or_none(server).await?;
        peer.say(&greeting()).await.then_some(peer)
    }

    /// Connected, and nothing said yet.
    pub async fn silent(server: SocketAddr) -> Self {
        Self {
            socket: TcpStream::connect(server).await.unwrap(),
            heard: Vec::new(),
        }
    }

    /// Connected and greeted as HTTP/2 wants it.
    pub async fn greeted(server: SocketAddr) -> Self {
        let mut peer = Self::silent(server).await;
        assert!(peer.say(&greeting()).await, "a new connection takes a greeting");
        peer
    }

    /// Sends bytes; whether the server still takes them.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok()
    }

    /// The next frame, or none when the server has hung up.
    pub async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.whole() {
                return Some(frame);
            }
            let mut buffer = [0; 4096];
            match within("a word of the server", self.socket.read(&mut buffer)).await {
                Ok(n @ 1..) => self.heard.extend_from_slice(&buffer[..n]),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    fn whole(&mut self) -> Option<Frame> {
        let head = self.heard.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.heard.get(9..9 + length)?.to_vec();
        self.heard.drain(..9 + length);
        Some(Frame {
            kind,
            flags,
            stream,
            payload,
        })
    }

    /// The first frame that `holds`.
    ///
    /// # Panics
    /// When the server hangs up before.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            match self.hear().await {
                Some(frame) if holds(&frame) => return frame,
                Some(_) => {}
                None => panic!("the server hung up before {what}"),
            }
        }
    }

    /// Everything that the server still says before it hangs up.
    pub async fn until_hung_up(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.hear().await {
            frames.push(frame);
        }
        frames
    }

    /// Sends and listens at once until the server hangs up.
    pub async fn say_until_hung_up(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let (mut reads, mut writes) = self.socket.split();
        let heard = &mut self.heard;
        let listens = async {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reads.read(&mut buffer).await {
                heard.extend_from_slice(&buffer[..n]);
            }
        };
        within("the server to hang up", async {
            tokio::join!(writes.write_all(bytes), listens)
        })
        .await
        .0
        .ok();
        std::iter::from_fn(|| self.whole()).collect()
    }
}

/// The error code with which the server said goodbye, if it did.
pub fn goodbye(frames: &[Frame]) -> Option<u32> {
    let last = frames.iter().rfind(|frame| frame.kind == GOAWAY)?;
    let code = last.payload.get(4..8)?;
    Some(u32::from_be_bytes(code.try_into().unwrap()))
}
