"""Plain English words for keys and lists, in a fixed order; nothing here depends on a model or a seed."""

from __future__ import annotations

ADJECTIVES = (
    "able", "bold", "brave", "bright", "broad", "brown", "calm", "clean", "clear", "clever", "cold", "cool",
    "curly", "dark", "deep", "dry", "eager", "early", "empty", "fair", "fast", "final", "fine", "firm", "flat",
    "fresh", "full", "gentle", "glad", "golden", "grand", "green", "happy", "heavy", "high", "honest", "hot",
    "huge", "kind", "large", "late", "lazy", "light", "little", "lively", "long", "loud", "lucky", "mild",
    "narrow", "neat", "new", "noisy", "old", "open", "pale", "plain", "proud", "quick", "quiet", "rapid", "rare",
    "ready", "red",
)  # fmt: skip
NOUNS = (
    "anchor", "apple", "arrow", "badge", "bakery", "basket", "beach", "bell", "bench", "bird", "boat", "bottle",
    "branch", "bridge", "brush", "bucket", "button", "cabin", "camera", "candle", "carpet", "castle", "chair",
    "cherry", "clock", "cloud", "coat", "coin", "corner", "cottage", "cup", "desk", "door", "dream", "drum",
    "engine", "farm", "feather", "fence", "field", "flag", "flower", "forest", "fork", "garden", "gate", "glass",
    "glove", "hammer", "harbour", "hat", "hill", "horse", "island", "jacket", "jar", "kettle", "key", "kitchen",
    "ladder", "lake", "lamp", "leaf", "lemon", "letter", "library", "mirror", "moon", "mountain", "needle",
    "nest", "ocean", "orange", "paper", "path", "pencil", "piano", "picture", "pillow", "plate", "pocket",
    "pond", "potato", "ribbon", "ring", "river", "road", "roof", "rope", "saddle", "sail", "school", "shell",
    "ship", "shoe", "spoon",
)  # fmt: skip
SINGLE = NOUNS + ADJECTIVES
PAIRS = len(ADJECTIVES) * len(NOUNS)
TOTAL = len(SINGLE) + PAIRS


def pair(number: int) -> str:
    """Pair `number` of an adjective and a noun, below `PAIRS`.

    Example:
        >>> pair(1)
        'able-apple'
    """
    first, second = divmod(number, len(NOUNS))
    return f"{ADJECTIVES[first]}-{NOUNS[second]}"


def word(number: int) -> str:
    """Word `number`, below `TOTAL`: the single words first, then the pairs."""
    return SINGLE[number] if number < len(SINGLE) else pair(number - len(SINGLE))
