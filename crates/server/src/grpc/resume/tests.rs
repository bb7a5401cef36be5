//! What decides whether two requests are one, and who has room.

use super::*;

fn request(change: impl FnOnce(&mut v1::GenerateRequest)) -> [u8; 32] {
    let mut request = v1::GenerateRequest {
        prompt: Some(v1::generate_request::Prompt::Text("x".into())),
        sampling: Some(v1::SamplingParams {
            logit_bias: (0..50).map(|token| (token, token as f32)).collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut request);
    contents(&request)
}

#[test]
fn a_request_is_known_again_by_what_decides_its_answer() {
    let first = request(|_| {});
    assert_eq!(
        first,
        request(|r| {
            r.request_id = "r".into();
            r.resume_from_token = Some(7);
            r.time_limit_ms = Some(5);
            r.priority = Some(1);
        })
    );
    assert_ne!(
        first,
        request(|r| r.prompt = Some(v1::generate_request::Prompt::Text("y".into())))
    );
    assert_ne!(first, request(|r| r.model = "other".into()));
    assert_ne!(
        first,
        request(|r| {
            if let Some(sampling) = &mut r.sampling {
                sampling.logit_bias.insert(3, 0.5);
            }
        })
    );
}
