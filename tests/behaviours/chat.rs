//! A chat is rendered by the checkpoint's template and then is a prompt like any other.

use baichuan_client::{Client, prompt, v1};
use e2e::{Fake, Setup, TestServer, generate, refusal, tokens};
use tonic::Code;
use v1::tokenize_request::Input;

fn conversation() -> Vec<v1::ChatMessage> {
    vec![
        prompt::message("user", "My head hurts."),
        prompt::message("assistant", "Since when?"),
        prompt::message("user", "三天"),
    ]
}

async fn rendered(client: &Client, chat: v1::Chat) -> v1::TokenizeResponse {
    let request = v1::TokenizeRequest {
        input: Some(Input::Chat(chat)),
        ..Default::default()
    };
    client.tokenize(request).await.unwrap()
}

#[tokio::test]
async fn a_chat_generates_what_its_rendered_tokens_generate() {
    let server = TestServer::fake().await;
    let as_chat = generate(prompt::chat(conversation()), 20);
    let answer = server
        .client
        .generate(as_chat)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let rendered = rendered(&server.client, prompt::conversation(conversation())).await;
    assert_eq!(
        rendered.rendered,
        "<C_Q>My head hurts.<C_A>Since when?<C_Q>三天<C_A>"
    );
    let as_tokens = tokens(&rendered.token_ids, 20);
    let same = server
        .client
        .generate(as_tokens)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(answer.choices[0].token_ids, same.choices[0].token_ids);
    assert_eq!(
        answer.info.unwrap().prompt_tokens as usize,
        rendered.token_ids.len()
    );
    server.stop().await;
}

#[tokio::test]
async fn the_assistants_turn_is_opened_or_continued_as_asked() {
    let server = TestServer::fake().await;
    let closed = v1::Chat {
        add_generation_prompt: Some(false),
        ..prompt::conversation(conversation())
    };
    let closed = rendered(&server.client, closed).await.rendered;
    assert!(closed.ends_with("三天"), "{closed}");

    let mut messages = conversation();
    messages.push(prompt::message("assistant", "You sho"));
    let open = v1::Chat {
        add_generation_prompt: Some(false),
        continue_final_message: Some(true),
        ..prompt::conversation(messages)
    };
    let open = rendered(&server.client, open).await.rendered;
    assert!(open.ends_with("<C_A>You sho"), "{open}");
    server.stop().await;
}

#[tokio::test]
async fn a_checkpoint_without_roles_refuses_chats_and_takes_text() {
    let fake = Fake {
        chat: false,
        ..Fake::default()
    };
    let server = TestServer::start(Setup::fake(fake)).await;
    assert!(!server.client.model("").await.unwrap().supports_chat);
    let refused = refusal(
        server
            .client
            .generate(generate(prompt::chat(conversation()), 5))
            .await,
    );
    assert_eq!(refused.code, Code::Unimplemented);
    assert!(refused.reason.is_some(), "{refused:?}");
    let text = server
        .client
        .generate(generate(prompt::text("plain"), 5))
        .await
        .unwrap();
    assert_eq!(text.collect().await.unwrap().choices[0].token_ids.len(), 5);
    server.stop().await;
}

#[tokio::test]
async fn an_empty_conversation_and_contradicting_wishes_are_refused() {
    let server = TestServer::fake().await;
    let both = v1::Chat {
        add_generation_prompt: Some(true),
        continue_final_message: Some(true),
        ..prompt::conversation(conversation())
    };
    for chat in [prompt::conversation([]), both] {
        let request = generate(v1::generate_request::Prompt::Chat(chat), 5);
        let refused = refusal(server.client.generate(request).await);
        assert_eq!(refused.code, Code::InvalidArgument);
        assert!(
            refused.violations[0].field.starts_with("chat"),
            "{:?}",
            refused.violations
        );
    }
    server.stop().await;
}
