//! Messages of the protocol as JSON: names as in the proto, every field present, 64-bit numbers as numbers.

use std::sync::LazyLock;

use anyhow::Context;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(baichuan_proto::FILE_DESCRIPTOR_SET).map_err(|e| e.to_string()));

/// `message`, whose name in package `baichuan.v1` is `name`.
pub(crate) fn of(name: &str, message: &impl Message) -> anyhow::Result<Value> {
    let pool = POOL.as_ref().map_err(|e| anyhow::anyhow!("descriptors: {e}"))?;
    let descriptor = pool
        .get_message_by_name(&format!("baichuan.v1.{name}"))
        .with_context(|| format!("no message {name} in baichuan.v1"))?;
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..])?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

#[cfg(test)]
mod tests {
    use baichuan_client::v1;

    use super::*;

    #[test]
    fn a_message_keeps_the_protos_names_and_its_numbers() {
        let info = v1::PromptInfo {
            request_id: "r".into(),
            seed: u64::MAX,
            ..Default::default()
        };
        let json = of("PromptInfo", &info).unwrap();
        assert_eq!(json["request_id"], "r");
        assert_eq!(json["seed"], u64::MAX);
        assert_eq!(json["prompt_tokens"], 0);
    }

    #[test]
    fn an_enum_is_its_name() {
        let finish = v1::Finish {
            finish_reason: v1::FinishReason::Length.into(),
            ..Default::default()
        };
        assert_eq!(
            of("Finish", &finish).unwrap()["finish_reason"],
            "FINISH_REASON_LENGTH"
        );
    }

    #[test]
    fn a_name_that_is_not_in_the_protocol_is_an_error() {
        assert!(of("Nothing", &v1::PromptInfo::default()).is_err());
    }
}
