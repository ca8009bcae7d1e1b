//! What is to be known of a decoder whose rows join and leave between tokens.

use molora_routing::{Granularity, LayerRule};

use super::Decoder;
use super::cache::ROOM;
use crate::{Adaptable, PoolWeights};

/// Bytes of a number in the cache.
const NUMBER: usize = size_of::<f32>();

impl Decoder {
    /// Tokens that a cache has room for, where each row has at most `tokens`.
    pub fn cache_room(tokens: usize) -> usize {
        tokens.next_multiple_of(ROOM)
    }

    /// Bytes that a token takes in a cache: keys and values of all layers, twice with a first pass.
    pub fn cache_bytes_per_token(&self) -> usize {
        let passes = match self.part().and_then(crate::ModelPart::first_pass) {
            Some(_) => 2,
            None => 1,
        };
        let width = self.num_kv_heads * self.layers[0].attention.head_dim;
        2 * passes * self.layers.len() * width * NUMBER
    }

    /// Whether a prompt has to be read in one pass, because something decides by all of its tokens.
    pub fn reads_prompts_whole(&self) -> bool {
        let by_sequence = |granularity| granularity == Granularity::Sequence;
        let sites = self.sites();
        let of_sites = sites.iter().filter_map(|(_, site)| site.router.as_ref());
        let layers = self.layer_routers();
        let of_layers = layers.iter().map(|(_, layer)| &layer.router);
        let shared = self.part();
        let of_all = shared
            .and_then(crate::ModelPart::router)
            .map(|shared| &shared.router);
        let first = shared.and_then(crate::ModelPart::first_pass);
        let of_first = first.and_then(|first| first.router.as_ref());
        let mut routers = of_sites.chain(of_layers).chain(of_all).chain(of_first);
        self.layer_rule == LayerRule::Vote
            || routers.any(|router| by_sequence(router.granularity()))
            || self
                .pool_weights()
                .any(|weights| weights != PoolWeights::PerToken)
    }

    /// Whether what a row gets depends on the rows beside it.
    pub fn mixes_rows(&self) -> bool {
        self.pool_weights()
            .any(|weights| weights == PoolWeights::Released)
    }

    fn pool_weights(&self) -> impl Iterator<Item = PoolWeights> {
        let linears = self.linears().into_iter();
        linears.filter_map(|(_, linear)| Some(linear.pooled.as_ref()?.weights()))
    }
}
