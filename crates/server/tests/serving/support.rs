//! A server over the fake model, on ports of its own, whose steps and loading a test can hold.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use baichuan_client::{Client, ConnectOptions, Error, Health, Refusal, prompt, v1};
use baichuan_engine::testing::{FakeOptions, fake_engine};
use baichuan_engine::{Backend, Checkpoint, LoadError, LoadRequest, ModelPlugin, Registry};
use baichuan_server::config::{Inputs, load};
use baichuan_server::shutdown::{self, Trigger};
use baichuan_server::{Listeners, ServeError, Server};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Something to wait at while it is shut.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn shut(&self) {
        *self.0.0.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let shut = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(shut, |shut| *shut).unwrap());
    }
}

/// What the fake model of a test server does.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    /// Passed by every step.
    pub(crate) steps: Gate,
    /// Passed while loading.
    pub(crate) loading: Gate,
    /// The next step panics.
    pub(crate) panic: Arc<Mutex<bool>>,
    /// Whether the checkpoint has no chat template.
    pub(crate) chatless: bool,
    /// Loading fails.
    pub(crate) broken: bool,
}

impl ModelPlugin for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn accepts(&self, _: &Checkpoint) -> bool {
        true
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        self.loading.pass();
        if self.broken {
            return Err(LoadError::Invalid {
                path: request.checkpoint.dir().join("model.safetensors"),
                message: "tensor model.norm.weight is missing".into(),
            });
        }
        let (steps, panic) = (self.steps.clone(), self.panic.clone());
        let engine = fake_engine(FakeOptions {
            name: request.name.into(),
            engine: request.engine.clone(),
            chat: !self.chatless,
            hook: Some(Box::new(move |_| {
                steps.pass();
                assert!(!*panic.lock().unwrap(), "a test asked for this panic");
                Ok(())
            })),
            ..FakeOptions::default()
        });
        Ok(Arc::new(engine?))
    }
}

/// A running server and a client of it.
pub(crate) struct TestServer {
    pub(crate) fake: Fake,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Where AdminService is, when enabled.
    pub(crate) admin_grpc: Option<SocketAddr>,
    pub(crate) client: Client,
    pub(crate) trigger: Trigger,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A test that failed with steps held must not hold the runtime.
        self.fake.steps.open();
        self.fake.loading.open();
    }
}

impl TestServer {
    /// Loaded and ready, configured by TOML.
    pub(crate) async fn start(toml: &str) -> Self {
        Self::start_with(Fake::default(), toml).await
    }

    pub(crate) async fn start_with(fake: Fake, toml: &str) -> Self {
        let server = Self::launch(fake, toml).await;
        let mut health = server.client.watch_health(Client::READINESS).await.unwrap();
        while health.next().await.unwrap() != Some(Health::Serving) {}
        server
    }

    /// Not waiting for anything.
    pub(crate) async fn launch(fake: Fake, toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let config = load(&inputs(dir.path(), toml)).unwrap_or_else(|e| panic!("{e}"));
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (grpc, admin) = (bind().await, bind().await);
        let (address, admin_address) = (grpc.local_addr().unwrap(), admin.local_addr().unwrap());
        let admin_grpc = match config.listen.admin_grpc {
            Some(_) => Some(bind().await),
            None => None,
        };
        let admin_grpc_address = admin_grpc.as_ref().map(|l| l.local_addr().unwrap());
        let listeners = Listeners {
            grpc,
            admin: Some(admin),
            admin_grpc,
        };
        let (trigger, shutdown) = shutdown::channel();
        let registry = Registry::new().with(fake.clone());
        let task = tokio::spawn(async move {
            let _dir = dir;
            Server::new(config, registry).run(listeners, shutdown).await
        });
        let options = ConnectOptions::new(address.to_string());
        Self {
            fake,
            address,
            admin: admin_address,
            admin_grpc: admin_grpc_address,
            client: Client::connect(&options).await.unwrap(),
            trigger,
            task,
        }
    }

    /// A client of AdminService.
    pub(crate) async fn operator(&self) -> Client {
        let address = self.admin_grpc.unwrap().to_string();
        Client::connect(&ConnectOptions::new(address)).await.unwrap()
    }

    /// How the server ended.
    pub(crate) async fn ended(&mut self) -> Result<(), ServeError> {
        (&mut self.task).await.unwrap()
    }

    /// Waits until the engine's load is as wanted. Asked over the wire: what a router would see.
    pub(crate) async fn load_until(&self, wanted: impl Fn(&v1::ModelLoad) -> bool) {
        while !wanted(&self.client.load("").await.unwrap()[0]) {
            tokio::task::yield_now().await;
        }
    }

    /// The body of a page of the admin listener.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).await.unwrap();
        let status = response.split(' ').nth(1).unwrap().parse().unwrap();
        (status, response)
    }
}

fn inputs(model: &Path, toml: &str) -> Inputs {
    let file = model.join("server.toml");
    let toml = match toml.contains("[[models]]") {
        true => toml.replace("DIR", &model.display().to_string()),
        false => format!("{toml}\n[model]\nname = 'fake'\npath = '{}'\n", model.display()),
    };
    std::fs::write(&file, toml).unwrap();
    Inputs {
        file: Some(file),
        ..Inputs::default()
    }
}

/// A greedy generation of exactly `max_tokens`.
pub(crate) fn generation(text: &str, max_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(prompt::text(text)),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            ..Default::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn embedding(texts: &[&str]) -> v1::EmbedRequest {
    v1::EmbedRequest {
        inputs: texts.iter().map(|t| prompt::embed_text(*t)).collect(),
        ..Default::default()
    }
}

/// What the server said of a call it refused or cut.
pub(crate) fn refusal<T>(outcome: Result<T, Error>) -> Refusal {
    match outcome {
        Ok(_) => panic!("the call should have failed"),
        Err(error) => error.refusal().cloned().unwrap_or_else(|| panic!("{error}")),
    }
}

/// The fields that a refusal blames.
pub(crate) fn fields(refusal: &Refusal) -> Vec<&str> {
    refusal.violations.iter().map(|v| v.field.as_str()).collect()
}
