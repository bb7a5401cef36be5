//! Takes a stream up again when its connection breaks, from the token after the last one received.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;

use baichuan_proto::v1;
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use crate::client::Client;
use crate::error::Error;
use crate::generation::{Event, Generation, typed};

/// Waits between two attempts to take a stream up.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// A name for a request, such as nobody else has.
pub fn new_request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A stream that is taken up again.
pub(crate) struct Resuming {
    client: Client,
    request: v1::GenerateRequest,
    patience: Duration,
    stream: Streaming<v1::GenerateResponse>,
    /// What has been received already, and may be told again.
    has_info: bool,
    finished: BTreeSet<u32>,
}

impl Resuming {
    /// Begins a request.
    pub(crate) async fn begin(
        client: Client,
        mut request: v1::GenerateRequest,
        patience: Duration,
    ) -> Result<Generation, Error> {
        if request.request_id.is_empty() {
            request.request_id = new_request_id();
        }
        request.resume_from_token.get_or_insert(0);
        let id = request.request_id.clone();
        let resuming = Self {
            stream: open(&client, &request, patience).await?,
            client,
            request,
            patience,
            has_info: false,
            finished: BTreeSet::new(),
        };
        let events = stream::unfold(Some(resuming), async |resuming| {
            let mut resuming = resuming?;
            match resuming.next().await {
                Ok(event) => Some((Ok(event?), Some(resuming))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Generation::new(id, events.boxed()))
    }

    async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.stream.message().await {
                Ok(Some(message)) => {
                    let event = typed(message)?;
                    if self.is_news(&event) {
                        return Ok(Some(event));
                    }
                }
                Ok(None) => return Ok(None),
                Err(status) if is_loss(&status) => {
                    self.stream = open(&self.client, &self.request, self.patience).await?;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Notes what has come; whether it had not come before.
    fn is_news(&mut self, event: &Event) -> bool {
        match event {
            Event::PromptInfo(_) => !std::mem::replace(&mut self.has_info, true),
            Event::Delta(delta) => {
                self.request.resume_from_token = Some(delta.tokens_so_far);
                true
            }
            Event::Finish(finish) => self.finished.insert(finish.index),
        }
    }
}

/// Asks for the stream from where the request says, until somebody answers or `patience` is over.
async fn open(
    client: &Client,
    request: &v1::GenerateRequest,
    patience: Duration,
) -> Result<Streaming<v1::GenerateResponse>, Error> {
    let end = Instant::now() + patience;
    let mut delay = FIRST_DELAY;
    loop {
        let status = match client.inference().generate(request.clone()).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let is_worth_trying = is_loss(&status) || status.code() == Code::Unavailable;
        if !is_worth_trying || Instant::now() + delay > end {
            return Err(status.into());
        }
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

/// Whether it is the transport that failed, not the server that spoke: its words have no cause on this side.
fn is_loss(status: &Status) -> bool {
    status.source().is_some()
}
