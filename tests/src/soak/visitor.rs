//! One visit: good, impatient, slow, gone, too large, or nonsense.

use std::time::{Duration, Instant};

use baichuan_client::{Client, ConnectOptions, Error, Event, prompt, v1};
use rand::Rng;
use rand::rngs::StdRng;

use super::report::Report;
use crate::peer::{DATA, END_HEADERS, HEADERS, Peer, call_headers, frame};
use crate::request::{text, tokens};

/// No visit takes longer, whatever goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that stops reading stops for: longer than what is buffered on the way lasts.
const STALL: Duration = Duration::from_secs(5);

/// What a visit is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asks, and reads to the end.
    Good,
    /// Goes away in the middle of an answer, or before it begins.
    Cancels,
    /// Has a time in which little can be done.
    Hurried,
    /// Reads a little and then nothing for a while.
    Stalls,
    /// Wants vectors.
    Embeds,
    /// Has a connection of its own, which breaks.
    Disconnects,
    /// Begins a call by hand and is gone, in the middle of a frame.
    Breaks,
    /// Sends a message larger than is accepted.
    Oversized,
    /// Asks for what cannot be.
    Invalid,
    /// Sends bytes that are no HTTP/2, or are and then are not.
    Nonsense,
}

impl Kind {
    const KINDS: [(Self, u32); 10] = [
        (Self::Good, 50),
        (Self::Cancels, 13),
        (Self::Hurried, 9),
        (Self::Stalls, 2),
        (Self::Embeds, 6),
        (Self::Disconnects, 6),
        (Self::Breaks, 4),
        (Self::Oversized, 3),
        (Self::Invalid, 3),
        (Self::Nonsense, 4),
    ];

    /// Of visits, those that ask for something that can be done: the first six kinds.
    pub(super) const SHARE_THAT_ASKS: f64 = 0.86;

    pub(super) fn draw(random: &mut StdRng) -> Self {
        let mut at = random.random_range(0..100);
        for (kind, share) in Self::KINDS {
            if at < share {
                return kind;
            }
            at -= share;
        }
        Self::Good
    }

    fn asks(self) -> bool {
        !matches!(
            self,
            Self::Breaks | Self::Oversized | Self::Invalid | Self::Nonsense
        )
    }
}

/// One visit's client, and what it draws at random.
pub(super) struct Visitor {
    client: Client,
    address: String,
    max_tokens: u32,
    prompt: Vec<u32>,
    /// Between 0 and 1, for whatever else.
    chance: f64,
    nonsense: Vec<u8>,
    report: Report,
}

impl Visitor {
    pub(super) fn new(client: Client, address: &str, max_tokens: u32, random: &mut StdRng) -> Self {
        let length = random.random_range(16..160);
        Self {
            client,
            address: address.into(),
            max_tokens,
            // Ids that are text in every vocabulary of more than these.
            prompt: (0..length).map(|_| random.random_range(300..500)).collect(),
            chance: random.random(),
            nonsense: (0..random.random_range(1..4096))
                .map(|_| random.random())
                .collect(),
            report: Report::default(),
        }
    }

    pub(super) async fn visit(mut self, kind: Kind) -> Report {
        self.report.asked = u64::from(kind.asks());
        let visit = async {
            match kind {
                Kind::Good => self.read(usize::MAX).await,
                Kind::Cancels => {
                    self.read((self.chance * f64::from(self.max_tokens)) as usize)
                        .await
                }
                Kind::Hurried => self.hurried().await,
                Kind::Stalls => self.stalls().await,
                Kind::Embeds => self.embeds().await,
                Kind::Disconnects => self.disconnects().await,
                Kind::Breaks => self.breaks().await,
                Kind::Oversized => self.oversized().await,
                Kind::Invalid => self.invalid().await,
                Kind::Nonsense => self.nonsense().await,
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, visit).await.is_ok();
        let mut report = self.report;
        if !in_time {
            report.wrong(format!(
                "a visit of kind {kind:?} did not end within {PATIENCE:?}"
            ));
        }
        report
    }

    fn request(&self) -> v1::GenerateRequest {
        tokens(&self.prompt, self.max_tokens)
    }

    /// Reads an answer to its end, or until it has had enough.
    async fn read(&mut self, enough: usize) {
        let began = Instant::now();
        let mut generation = match self.client.generate(self.request()).await {
            Ok(generation) => generation,
            Err(error) => return self.turned_away(&error, began),
        };
        let (mut n_tokens, mut ends) = (0, 0);
        while n_tokens < enough {
            match generation.next().await {
                Ok(Some(Event::Delta(delta))) => {
                    if n_tokens == 0 {
                        self.report.first_token.push(began.elapsed());
                    }
                    n_tokens += delta.token_ids.len();
                }
                Ok(Some(Event::Finish(_))) => ends += 1,
                Ok(Some(Event::PromptInfo(_))) => {}
                Ok(None) => {
                    if ends != 1 || n_tokens != self.max_tokens as usize {
                        let what = format!("{ends} ends after {n_tokens} of {} tokens", self.max_tokens);
                        self.report.wrong(what);
                    }
                    return self.report.end("finished");
                }
                Err(error) => {
                    if ends > 0 {
                        self.report.wrong(format!("an error after the end: {error}"));
                    }
                    return self.turned_away(&error, began);
                }
            }
        }
        self.report.end("cancelled");
    }

    /// Refused for lack of room, and told when to come back; anything else is wrong.
    fn turned_away(&mut self, error: &Error, began: Instant) {
        let Error::ResourceExhausted(refusal) = error else {
            return self.report.wrong(format!("unexpected: {error}"));
        };
        let reason = refusal.reason.as_deref().unwrap_or_default();
        let delay = refusal.retry_delay.unwrap_or_default();
        if delay.is_zero() || !matches!(reason, "QUEUE_FULL" | "TOKEN_BUDGET") {
            self.report
                .wrong(format!("refused with {reason:?}, to come back after {delay:?}"));
        }
        self.report.refused.push(began.elapsed());
        self.report.end(format!("refused: {reason}"));
    }

    async fn hurried(&mut self) {
        let began = Instant::now();
        let request = v1::GenerateRequest {
            time_limit_ms: Some(1 + (self.chance * 300.0) as u32),
            ..self.request()
        };
        let outcome = match self.client.generate(request).await {
            Ok(generation) => generation.collect().await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => self.report.end("finished in its time"),
            Err(Error::DeadlineExceeded(_)) => self.report.end("out of time"),
            Err(error) => self.turned_away(&error, began),
        }
    }

    async fn stalls(&mut self) {
        let began = Instant::now();
        let mut request = tokens(&self.prompt, 500);
        // More than fits into what is buffered on the way.
        request.output = Some(v1::OutputOptions {
            logprobs: Some(20),
            ..Default::default()
        });
        let mut generation = match self.client.generate(request).await {
            Ok(generation) => generation,
            Err(error) => return self.turned_away(&error, began),
        };
        for _ in 0..3 {
            if let Err(error) = generation.next().await {
                return self.turned_away(&error, began);
            }
        }
        tokio::time::sleep(STALL).await;
        match generation.collect().await {
            Ok(_) => self.report.end("finished after a stall"),
            Err(Error::ResourceExhausted(refusal)) if refusal.reason.as_deref() == Some("SLOW_CLIENT") => {
                self.report.end("cut off as slow");
            }
            Err(error) => self.report.wrong(format!("after a stall: {error}")),
        }
    }

    async fn embeds(&mut self) {
        let began = Instant::now();
        let request = v1::EmbedRequest {
            inputs: vec![prompt::embed_text("embed this")],
            ..Default::default()
        };
        match self.client.embed(request).await {
            Ok(answer) if answer.embeddings.len() == 1 => self.report.end("embedded"),
            Ok(answer) => self
                .report
                .wrong(format!("{} vectors of one input", answer.embeddings.len())),
            Err(error) => self.turned_away(&error, began),
        }
    }

    async fn disconnects(&mut self) {
        let began = Instant::now();
        let client = match Client::connect(&ConnectOptions::new(&self.address)).await {
            Ok(client) => client,
            Err(error) => return self.report.wrong(format!("cannot connect: {error}")),
        };
        match client.generate(self.request()).await {
            Ok(mut generation) => {
                let listens = async { while let Ok(Some(_)) = generation.next().await {} };
                let _ =
                    tokio::time::timeout(Duration::from_millis((self.chance * 500.0) as u64), listens).await;
                self.report.end("disconnected");
            }
            Err(error) => self.turned_away(&error, began),
        }
    }

    async fn breaks(&mut self) {
        let mut peer = Peer::greeted_or_none(&self.address).await;
        let Some(peer) = &mut peer else {
            return self.report.wrong("cannot connect");
        };
        let call = [
            frame(HEADERS, END_HEADERS, 1, &call_headers()),
            frame(DATA, 0, 1, &[0, 0, 0, 0, 9, 1, 2, 3]),
        ]
        .concat();
        let cut = 1 + (self.chance * (call.len() - 1) as f64) as usize;
        peer.say(&call[..cut]).await;
        self.report.end("broke off");
    }

    async fn oversized(&mut self) {
        match self.client.generate(text(&"x".repeat(300 << 10), 1)).await {
            Err(Error::ResourceExhausted(refusal))
                if refusal.reason.as_deref() == Some("MESSAGE_TOO_LARGE") =>
            {
                self.report.end("oversized: refused");
            }
            Err(error) => self.report.wrong(format!("oversized: {error}")),
            Ok(_) => self.report.wrong("oversized: accepted"),
        }
    }

    async fn invalid(&mut self) {
        let mut request = self.request();
        request.sampling = Some(v1::SamplingParams {
            top_p: Some(7.0),
            ..Default::default()
        });
        match self.client.generate(request).await {
            Err(Error::InvalidArgument(_)) => self.report.end("invalid: refused"),
            Err(error) => self.report.wrong(format!("invalid: {error}")),
            Ok(_) => self.report.wrong("invalid: accepted"),
        }
    }

    async fn nonsense(&mut self) {
        let peer = match self.chance < 0.5 {
            true => Peer::greeted_or_none(&self.address).await,
            false => Peer::silent_or_none(&self.address).await,
        };
        let Some(mut peer) = peer else {
            return self.report.wrong("cannot connect");
        };
        // The server may hang up before it has taken everything.
        peer.say(&self.nonsense).await;
        tokio::time::sleep(Duration::from_millis((self.chance * 200.0) as u64)).await;
        self.report.end("nonsense");
    }
}
