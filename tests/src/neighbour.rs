//! Somebody who is served beside what a test does to the server, and must not notice.

use baichuan_client::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake::greedy;
use crate::request::tokens;
use crate::server::TestServer;
use crate::wait::within;

/// Tokens of each of its completions.
const MAX_TOKENS: u32 = 100;

/// Asks a fake model for one completion after another, on a connection of its own.
pub struct Neighbour {
    asking: JoinHandle<usize>,
    enough: watch::Sender<bool>,
}

impl Neighbour {
    /// One that has its first answer already.
    pub async fn beside(server: &TestServer) -> Self {
        let client = server.connect().await;
        ask(&client).await;
        let (enough, told) = watch::channel(false);
        let asking = tokio::spawn(async move {
            let mut answers = 0;
            while !*told.borrow() {
                ask(&client).await;
                answers += 1;
            }
            answers
        });
        Self { asking, enough }
    }

    /// Ends it. Every answer that it had was right, and it had some.
    ///
    /// # Panics
    /// Otherwise.
    pub async fn was_served(self) {
        self.enough.send_replace(true);
        let answers = within("the neighbour's last answer", self.asking).await.unwrap();
        assert!(answers > 0);
    }
}

async fn ask(client: &Client) {
    let all: Vec<u32> = (0..264).collect();
    let asked = async {
        let generation = client.generate(tokens(&[9], MAX_TOKENS)).await?;
        generation.collect().await
    };
    let answer = within("a neighbour's answer", asked)
        .await
        .expect("a neighbour is served");
    let expected = greedy(&[9], MAX_TOKENS as usize, &all);
    assert_eq!(answer.choices[0].token_ids, expected);
}
