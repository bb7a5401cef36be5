//! The compiled kernel files, and which kernels are in each.

use crate::ElementType;

/// Machine code, and the kernels in it.
pub(super) struct Module {
    pub(super) code: &'static [u8],
    /// What it was compiled for; none: a file that knows no such type.
    pub(super) element: Option<ElementType>,
    pub(super) kernels: &'static [&'static str],
}

/// A file as compiled once, or for each of some types.
macro_rules! modules {
    ($file:literal, $kernels:expr) => {
        vec![Module {
            code: include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".cubin")).as_slice(),
            element: None,
            kernels: $kernels,
        }]
    };
    ($file:literal for $($element:ident),+: $kernels:expr) => {
        vec![$(Module {
            code: include_bytes!(concat!(env!("OUT_DIR"), "/", $file, "_", stringify!($element), ".cubin")).as_slice(),
            element: Some(ElementType::$element),
            kernels: $kernels,
        }),+]
    };
}

/// Every kernel file, as often as it was compiled.
pub(super) fn all() -> impl Iterator<Item = Module> {
    let files = [
        modules!("codes", &["arrange", "random_codes"]),
        modules!("plain", &["argmax", "move_rows", "rope_table", "read_all"]),
        modules!("sample", &["sample"]),
        modules!("attention_any" for F32, Bf16, F16: &["attend_any"]),
        modules!("attention_decode" for Bf16, F16: &ATTEND_DECODE),
        modules!("attention_prefill" for Bf16, F16: &ATTEND_PREFILL),
        modules!("attention_wgmma" for Bf16, F16: &ATTEND_WGMMA),
        modules!("conv" for F32: &["conv_rope", "commit"]),
        modules!("conv" for Bf16, F16: &["conv_rope", "conv_rope_8", "commit", "commit_8"]),
        modules!("gemv" for Bf16, F16: &GEMV),
        modules!("gemv_quant" for Bf16, F16: &GEMV_QUANT),
        modules!("narrow" for Bf16, F16: &NARROW),
        modules!("narrow_quant" for Bf16, F16: &NARROW_QUANT),
        modules!("quantized" for Bf16, F16: &QUANTIZED),
        modules!("rows" for F32, Bf16, F16: &["embed", "rms_norm", "swiglu", "random_fill"]),
    ];
    files.into_iter().flatten()
}

const ATTEND_DECODE: [&str; 3] = ["attend_decode_64", "attend_decode_128", "attend_decode_256"];
const ATTEND_PREFILL: [&str; 3] = ["attend_prefill_64", "attend_prefill_128", "attend_prefill_256"];
const ATTEND_WGMMA: [&str; 3] = ["attend_wgmma_64", "attend_wgmma_128", "attend_wgmma_256"];
const QUANTIZED: [&str; 7] = [
    "round_rows",
    "rms_norm_rounded",
    "swiglu_rounded",
    "dequantize_bytes",
    "dequantize_nibbles",
    "dequantize_sixes",
    "dequantize_floats",
];
const NARROW: [&str; 21] = [
    "narrow_store_32",
    "narrow_store_64",
    "narrow_store_96",
    "narrow_store_f32_32",
    "narrow_store_f32_64",
    "narrow_store_f32_96",
    "narrow_add_32",
    "narrow_add_64",
    "narrow_add_96",
    "narrow_swiglu_32",
    "narrow_swiglu_64",
    "narrow_swiglu_96",
    "narrow_eighths_store_32",
    "narrow_eighths_store_64",
    "narrow_eighths_store_96",
    "narrow_eighths_store_f32_32",
    "narrow_eighths_store_f32_64",
    "narrow_eighths_store_f32_96",
    "narrow_eighths_add_32",
    "narrow_eighths_add_64",
    "narrow_eighths_add_96",
];
const NARROW_QUANT: [&str; 36] = [
    "narrow_bytes_store_32",
    "narrow_bytes_store_64",
    "narrow_bytes_store_128",
    "narrow_bytes_store_f32_32",
    "narrow_bytes_store_f32_64",
    "narrow_bytes_store_f32_128",
    "narrow_bytes_add_32",
    "narrow_bytes_add_64",
    "narrow_bytes_add_128",
    "narrow_bytes_swiglu_32",
    "narrow_bytes_swiglu_64",
    "narrow_bytes_swiglu_128",
    "narrow_nibbles_store_32",
    "narrow_nibbles_store_64",
    "narrow_nibbles_store_128",
    "narrow_nibbles_store_f32_32",
    "narrow_nibbles_store_f32_64",
    "narrow_nibbles_store_f32_128",
    "narrow_nibbles_add_32",
    "narrow_nibbles_add_64",
    "narrow_nibbles_add_128",
    "narrow_nibbles_swiglu_32",
    "narrow_nibbles_swiglu_64",
    "narrow_nibbles_swiglu_128",
    "narrow_sixes_store_32",
    "narrow_sixes_store_64",
    "narrow_sixes_store_128",
    "narrow_sixes_store_f32_32",
    "narrow_sixes_store_f32_64",
    "narrow_sixes_store_f32_128",
    "narrow_sixes_add_32",
    "narrow_sixes_add_64",
    "narrow_sixes_add_128",
    "narrow_sixes_swiglu_32",
    "narrow_sixes_swiglu_64",
    "narrow_sixes_swiglu_128",
];
const GEMV: [&str; 8] = [
    "gemv_store_8",
    "gemv_store_f32_8",
    "gemv_add_8",
    "gemv_swiglu_8",
    "gemv_store_16",
    "gemv_store_f32_16",
    "gemv_add_16",
    "gemv_swiglu_16",
];
const GEMV_QUANT: [&str; 40] = [
    "gemv_bytes_store_8",
    "gemv_bytes_store_f32_8",
    "gemv_bytes_add_8",
    "gemv_bytes_swiglu_8",
    "gemv_bytes_store_16",
    "gemv_bytes_store_f32_16",
    "gemv_bytes_add_16",
    "gemv_bytes_swiglu_16",
    "gemv_bytes_store_32",
    "gemv_bytes_store_f32_32",
    "gemv_bytes_add_32",
    "gemv_bytes_swiglu_32",
    "gemv_nibbles_store_8",
    "gemv_nibbles_store_f32_8",
    "gemv_nibbles_add_8",
    "gemv_nibbles_swiglu_8",
    "gemv_nibbles_store_16",
    "gemv_nibbles_store_f32_16",
    "gemv_nibbles_add_16",
    "gemv_nibbles_swiglu_16",
    "gemv_sixes_store_8",
    "gemv_sixes_store_f32_8",
    "gemv_sixes_add_8",
    "gemv_sixes_swiglu_8",
    "gemv_sixes_store_16",
    "gemv_sixes_store_f32_16",
    "gemv_sixes_add_16",
    "gemv_sixes_swiglu_16",
    "gemv_floats_store_8",
    "gemv_floats_store_f32_8",
    "gemv_floats_add_8",
    "gemv_floats_swiglu_8",
    "gemv_floats_store_16",
    "gemv_floats_store_f32_16",
    "gemv_floats_add_16",
    "gemv_floats_swiglu_16",
    "gemv_floats_store_32",
    "gemv_floats_store_f32_32",
    "gemv_floats_add_32",
    "gemv_floats_swiglu_32",
];
