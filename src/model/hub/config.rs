//! Reads the hub's settings from the environment.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::input_file;
use crate::progress::ProgressMode;

/// Default timeout, unless `HF_HUB_DOWNLOAD_TIMEOUT` sets one.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Location and access settings of the hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// URL without a trailing slash, such as `https://huggingface.co`.
    pub endpoint: String,
    /// Cache folder, usually `~/.cache/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// Access token for private and gated repositories. It is sent to the endpoint only.
    pub token: Option<String>,
    /// Whether the network is never used.
    pub offline: bool,
    /// Maximum number of consecutive connections without progress per download.
    pub retries: u32,
    /// Maximum wait for a response or for the next bytes of a file. A body must also bring 1,000 bytes per second
    /// within this time.
    pub timeout: Duration,
    /// Where download progress is shown.
    pub progress: ProgressMode,
}

impl HubConfig {
    /// Reads the settings from the environment as `huggingface_hub` does: `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME` or
    /// `XDG_CACHE_HOME`; `HF_TOKEN`, or the token file that a login left; `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`;
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds (30 if it is not a positive integer).
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok(), env::home_dir())
    }

    /// Reads the settings like [`from_env`](Self::from_env), from any source of variables.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, user_home: Option<PathBuf>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let on = |name: &str| {
            let value = var(name).unwrap_or_default().to_ascii_uppercase();
            matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.unwrap_or_else(|| user_home.unwrap_or_default().join(".cache"));
        let home = var("HF_HOME").map_or_else(|| caches.join("huggingface"), PathBuf::from);
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| input_file::read_to_string(&token_file).ok());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let seconds = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.trim().parse().ok());
        // A day is as good as forever and overflows no clock.
        let timeout = seconds
            .filter(|seconds| *seconds > 0)
            .map_or(TIMEOUT, |seconds: u64| Duration::from_secs(seconds.min(86_400)));
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache_dir: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            retries: 5,
            timeout,
            progress: ProgressMode::detect(false),
        }
    }
}
