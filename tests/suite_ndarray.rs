//! Runs the suite on the CPU.

#[macro_use]
mod suite;

backend_suite!(
    burn_ndarray::NdArray<f32>,
    arithmo_backends::BackendKind::NdArray,
    skip: [first_steps: "golden_runs replays all steps"]
);
