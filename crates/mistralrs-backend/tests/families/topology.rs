//! What is read in a topology file is what mistral.rs reads in it.

use baichuan_engine::Topology;
use mistralrs_core::Topology as Theirs;

#[test]
fn a_topology_means_what_it_means_to_mistral_rs() {
    for text in [
        "0-8:\n  isq: Q4K\n8:\n  isq: Q8_0\n10-12:\n  isq: Q6K\n",
        "0-4:\n  isq: Q4K\n2-6:\n  isq: Q6K\n",
        "2-6:\n  isq: Q6K\n0-4:\n  isq: Q4K\n",
        "0-4:\n  isq: Q4K\n2-4:\n  isq: Q3K\n",
        "0-4:\n  isq: Q4K\n2-4:\n  device: cpu\n",
        "0-2:\n  device: cpu\n  isq: q8_0\n",
        "'/ffn\\./':\n  isq: Q4K\n'/ffn\\.weight$/':\n  isq: Q6K\n",
    ] {
        let (ours, theirs) = (text.parse::<Topology>().unwrap(), Theirs::from_str(text).unwrap());
        for layer in 0..14 {
            let (ours, theirs) = (ours.layer(layer), theirs.layer_for(layer));
            assert_eq!(ours.is_some(), theirs.is_some(), "layer {layer} of {text}");
            let isq = theirs.and_then(|layer| layer.isq).map(|isq| format!("{isq:?}"));
            assert_eq!(
                ours.and_then(|range| range.isq).map(|isq| isq.to_string()),
                isq,
                "{layer} of {text}"
            );
            let placed = theirs.is_some_and(|layer| layer.device.is_some());
            assert_eq!(
                ours.is_some_and(|range| range.device.is_some()),
                placed,
                "{layer} of {text}"
            );
        }
        for name in ["model.ffn.weight", "model.ffn.bias", "attn.weight"] {
            let isq = theirs
                .match_for_name(name)
                .and_then(|layer| layer.isq)
                .map(|isq| format!("{isq:?}"));
            assert_eq!(
                ours.isq(name, None).map(|isq| isq.to_string()),
                isq,
                "{name} of {text}"
            );
        }
    }
    for text in [
        "8-4:\n  isq: Q4K\n",
        "a:\n  isq: Q4K\n",
        "0:\n  isq: Q9\n",
        "0:\n  device: gpu\n",
        "'/(/':\n  isq: Q4K\n",
    ] {
        assert!(
            text.parse::<Topology>().is_err() && Theirs::from_str(text).is_err(),
            "{text}"
        );
    }
}
