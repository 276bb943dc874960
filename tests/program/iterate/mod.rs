//! Tests of `arithmo sample-pairs`, which makes pairs of the model's own answers, and of `arithmo iterate`, which
//! trains on such pairs in rounds.

mod rounds;
mod sampling;
