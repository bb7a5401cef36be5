//! The compiled kernel files, and which kernels are in each.

/// Machine code, and the kernels in it.
pub(super) type Module = (&'static [u8], &'static [&'static str]);

macro_rules! module {
    ($file:literal, $($kernel:literal),+ $(,)?) => {
        (include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".cubin")).as_slice(), &[$($kernel),+])
    };
}

/// Every kernel file.
pub(super) fn all() -> Vec<Module> {
    vec![
        module!("attention_any", "attend_any_f32", "attend_any_bf16"),
        module!(
            "attention_decode",
            "attend_decode_64",
            "attend_decode_128",
            "attend_decode_256"
        ),
        module!(
            "attention_prefill",
            "attend_prefill_64",
            "attend_prefill_128",
            "attend_prefill_256"
        ),
        module!(
            "attention_wgmma",
            "attend_wgmma_64",
            "attend_wgmma_128",
            "attend_wgmma_256"
        ),
        module!(
            "conv",
            "conv_rope_f32",
            "conv_rope_bf16",
            "conv_rope_bf16_8",
            "commit_f32",
            "commit_bf16",
            "commit_bf16_8"
        ),
        module!(
            "gemv",
            "gemv_store_8",
            "gemv_store_f32_8",
            "gemv_add_8",
            "gemv_swiglu_8",
            "gemv_store_16",
            "gemv_store_f32_16",
            "gemv_add_16",
            "gemv_swiglu_16",
        ),
        module!(
            "gemv_quant",
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
        ),
        module!(
            "quantized",
            "arrange",
            "round_rows",
            "rms_norm_rounded",
            "swiglu_rounded",
            "dequantize_bytes",
            "dequantize_nibbles",
            "dequantize_sixes",
            "dequantize_floats",
            "random_codes",
        ),
        module!(
            "rows",
            "embed_f32",
            "embed_bf16",
            "rms_norm_f32",
            "rms_norm_bf16",
            "swiglu_f32",
            "swiglu_bf16",
            "argmax",
            "move_rows",
            "rope_table",
            "random_f32",
            "random_bf16",
            "read_all"
        ),
        module!("sample", "sample"),
    ]
}
