//! Waiting for what comes soon, and giving up on what does not.

use std::time::Duration;

use baichuan_client::{Client, Error, Health, v1};

/// Far longer than anything waited for takes, even on a busy machine: reaching it is a failure, never a pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// The outcome of `work`.
///
/// # Panics
/// When it does not come.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Returns when the server says that it is ready.
///
/// # Panics
/// When it does not become so.
pub async fn until_ready(client: &Client) {
    let ready = async {
        let mut watch = client.watch_health(Client::READINESS).await.unwrap();
        while watch.next().await.unwrap().expect("a watch goes on") != Health::Serving {}
    };
    within("readiness", ready).await;
}

/// What sequences hold of a model: how many there are, slots, blocks of both pools.
pub fn held(load: &v1::ModelLoad) -> u64 {
    let blocks: u64 = load.pools.iter().map(|pool| pool.blocks_used).sum();
    u64::from(load.running) + u64::from(load.waiting) + u64::from(load.slots_used) + blocks
}

/// Asks for a model's load until `holds`; the default model for an empty name.
///
/// # Panics
/// When it never does.
pub async fn until_load(
    client: &Client,
    model: &str,
    holds: impl Fn(&v1::ModelLoad) -> bool,
) -> v1::ModelLoad {
    let model = if model.is_empty() {
        client.model("").await.unwrap().name
    } else {
        model.into()
    };
    let mut last = None;
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            let [load] = client.load(&model).await.unwrap().try_into().unwrap();
            if holds(&load) {
                return load;
            }
            last = Some(load);
            // What an engine reports, it reports after its next step; nothing tells us when.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    match asked.await {
        Ok(load) => load,
        Err(_) => panic!("the load of {model} stays at {last:?}"),
    }
}

/// Returns when the server has let go of the call named `id`: its name is free again, and its request cancelled.
///
/// # Panics
/// When it does not.
pub async fn until_gone(client: &Client, id: &str) {
    let asked = async {
        loop {
            let request = v1::TokenizeRequest {
                request_id: id.into(),
                input: Some(v1::tokenize_request::Input::Text("x".into())),
                ..Default::default()
            };
            match client.tokenize(request).await {
                Ok(_) => return,
                Err(Error::InvalidArgument(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    within("the end of the call", asked).await;
}

/// Returns when a model's sequences hold nothing any more; the default model for an empty name.
pub async fn until_idle(client: &Client, model: &str) -> v1::ModelLoad {
    until_load(client, model, |load| held(load) == 0).await
}
