//! Types that weights are quantised to while they are loaded ("in-situ quantisation"), by mistral.rs's names.
//!
//! A vocabulary only: which of them a model has kernels for, its plugin knows.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

macro_rules! isq_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What to quantise weights to. Read in any case, written as mistral.rs spells it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "the formats' own names")]
        pub enum IsqType {
            $($(#[$doc])* $variant,)*
        }

        impl IsqType {
            /// All of them, in the order in which messages list them.
            pub const ALL: &[IsqType] = &[$(IsqType::$variant,)*];

            /// As mistral.rs spells it; its `parse_isq_value` reads this.
            pub fn name(self) -> &'static str {
                match self {
                    $(IsqType::$variant => $name,)*
                }
            }
        }
    };
}

isq_types! {
    /// The best type of about two bits that the device has kernels for.
    Bits2 = "2",
    /// Likewise of three.
    Bits3 = "3",
    /// Likewise of four.
    Bits4 = "4",
    /// Likewise of five.
    Bits5 = "5",
    /// Likewise of six.
    Bits6 = "6",
    /// Likewise of eight.
    Bits8 = "8",
    /// ggml: blocks of 32 nibbles with a scale.
    Q4_0 = "Q4_0",
    /// ggml: as Q4_0, with a minimum.
    Q4_1 = "Q4_1",
    /// ggml: blocks of 32 five-bit codes with a scale.
    Q5_0 = "Q5_0",
    /// ggml: as Q5_0, with a minimum.
    Q5_1 = "Q5_1",
    /// ggml: blocks of 32 bytes with a scale.
    Q8_0 = "Q8_0",
    /// ggml: as Q8_0, with a sum.
    Q8_1 = "Q8_1",
    /// ggml: blocks of 256, about 2.6 bits.
    Q2K = "Q2K",
    /// ggml: blocks of 256, about 3.4 bits.
    Q3K = "Q3K",
    /// ggml: blocks of 256, 4.5 bits.
    Q4K = "Q4K",
    /// ggml: blocks of 256, 5.5 bits.
    Q5K = "Q5K",
    /// ggml: blocks of 256, about 6.6 bits.
    Q6K = "Q6K",
    /// ggml: blocks of 256 bytes.
    Q8K = "Q8K",
    /// Half-quadratic, eight bits.
    HQQ8 = "HQQ8",
    /// Half-quadratic, four bits.
    HQQ4 = "HQQ4",
    /// Eight-bit floats.
    FP8 = "FP8",
    /// MLX's affine, eight bits.
    AFQ8 = "AFQ8",
    /// MLX's affine, six bits.
    AFQ6 = "AFQ6",
    /// MLX's affine, four bits.
    AFQ4 = "AFQ4",
    /// MLX's affine, three bits.
    AFQ3 = "AFQ3",
    /// MLX's affine, two bits.
    AFQ2 = "AFQ2",
    /// Eight-bit floats in blocks of 32.
    F8Q8 = "F8Q8",
    /// Four-bit floats with shared exponents.
    MXFP4 = "MXFP4",
}

/// No type has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ISQ type {got:?} is unknown, choose one of {}", listed())]
pub struct UnknownIsqType {
    got: String,
}

fn listed() -> String {
    let names: Vec<&str> = IsqType::ALL.iter().map(|isq| isq.name()).collect();
    names.join(", ")
}

impl FromStr for IsqType {
    type Err = UnknownIsqType;

    fn from_str(text: &str) -> Result<Self, UnknownIsqType> {
        let named = |isq: &&IsqType| isq.name().eq_ignore_ascii_case(text);
        let found = Self::ALL.iter().find(named).copied();
        found.ok_or_else(|| UnknownIsqType { got: text.to_owned() })
    }
}

impl fmt::Display for IsqType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for IsqType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for IsqType {
    /// From a name, or a number of bits.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = IsqType;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an ISQ type, such as \"Q8_0\", or a number of bits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IsqType, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, bits: i64) -> Result<IsqType, E> {
                bits.to_string().parse().map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, bits: u64) -> Result<IsqType, E> {
                bits.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_written_as_mistral_rs_spells_them() {
        for &isq in IsqType::ALL {
            assert_eq!(isq.name().to_lowercase().parse(), Ok(isq));
            assert_eq!(isq.to_string().parse(), Ok(isq));
        }
        assert_eq!("q8_0".parse(), Ok(IsqType::Q8_0));
        assert_eq!("4".parse(), Ok(IsqType::Bits4));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = "Q4_K".parse::<IsqType>().unwrap_err().to_string();
        assert!(
            message.contains("\"Q4_K\"") && message.contains("Q4K"),
            "{message}"
        );
        assert!("7".parse::<IsqType>().is_err());
    }

    #[test]
    fn a_configuration_may_give_a_name_or_a_number_of_bits() {
        let read = |json: &str| serde_json::from_str::<IsqType>(json).map_err(|e| e.to_string());
        assert_eq!(read("\"Q6k\""), Ok(IsqType::Q6K));
        assert_eq!(read("8"), Ok(IsqType::Bits8));
        assert!(read("7").is_err() && read("true").is_err() && read("-4").is_err());
        assert_eq!(serde_json::to_string(&IsqType::AFQ4).unwrap(), "\"AFQ4\"");
    }
}
