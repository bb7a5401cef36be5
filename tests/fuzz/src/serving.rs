//! The whole server in this process, over a model that is quick and checks the engine's books at every step.

use std::net::SocketAddr;
use std::time::Duration;

use baichuan_engine::Registry;
use baichuan_engine::testing::FakePlugin;
use baichuan_server::config::{Inputs, load};
use baichuan_server::{Listeners, shutdown};
use bytes::{Buf, BufMut, Bytes};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Nothing that is asked of the server takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: &str = "
listen = { grpc = '127.0.0.1:0', admin = 'off' }
model = { name = 'fake', path = 'MODEL' }
grpc = { vllm_facade = true }
requests = { max_time = '2s', text_threads = 1 }
engine = { max_context = 96, scrub_freed = true, cache = { context_tokens = 4096 } }
";

/// A server, and a client that speaks bytes.
///
/// All of both but the engine's thread and the text's runs in [`Self::wait`].
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    runtime: Runtime,
    channel: Channel,
    _trigger: shutdown::Trigger,
    _dir: TempDir,
}

impl Server {
    /// One that is ready.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let dir = crate::serving::scratch();
        let checkpoint = r#"{"architectures": ["FakeForCausalLM"]}"#;
        std::fs::write(dir.path().join("config.json"), checkpoint).expect("a checkpoint");
        let file = dir.path().join("server.toml");
        let text = CONFIG.replace("MODEL", &dir.path().display().to_string());
        std::fs::write(&file, text).expect("a configuration");
        let inputs = Inputs {
            file: Some(file),
            ..Inputs::default()
        };
        let config = load(&inputs).unwrap_or_else(|error| panic!("{error}"));
        let (trigger, shutdown) = shutdown::channel();
        let (address, channel) = runtime.block_on(async {
            let listeners = Listeners::bind(&config.listen).await.expect("a port");
            let address = listeners.grpc.local_addr().expect("an address");
            let registry = Registry::new().with(FakePlugin);
            tokio::spawn(baichuan_server::run(config, registry, listeners, shutdown));
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            (address, endpoint.connect().await.expect("a connection"))
        });
        let server = Self {
            address,
            runtime,
            channel,
            _trigger: trigger,
            _dir: dir,
        };
        let began = std::time::Instant::now();
        while !server.serves() {
            assert!(began.elapsed() < PATIENCE, "the server does not become ready");
        }
        server
    }

    /// The outcome of `work`.
    ///
    /// # Panics
    /// When it does not come.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let outcome = tokio::time::timeout(PATIENCE, work).await;
            outcome.unwrap_or_else(|_| panic!("no answer in {PATIENCE:?}"))
        })
    }

    /// Calls a method with these messages, whatever they are, and reads the answer to its end.
    pub(crate) async fn call(&self, path: &'static str, messages: Vec<Bytes>) -> Code {
        let mut grpc = Grpc::new(self.channel.clone());
        if let Err(error) = grpc.ready().await {
            panic!("the connection broke: {error}");
        }
        let path = path.parse().expect("a path");
        let request = Request::new(tokio_stream::iter(messages));
        let mut answers = match grpc.streaming(request, path, Raw).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status.code(),
        };
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    }

    /// Whether a good request gets an answer.
    pub(crate) fn serves(&self) -> bool {
        // The prompt "x", two tokens.
        let request = Bytes::from_static(b"\x1a\x01x\x3a\x02\x08\x02");
        let path = "/baichuan.v1.InferenceService/Generate";
        self.wait(self.call(path, vec![request])) == Code::Ok
    }
}

/// A folder in memory where the system has such a place: each input becomes a file.
pub(crate) fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .expect("a temporary folder")
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
