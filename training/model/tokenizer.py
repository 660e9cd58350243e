"""The tokenizer of a run: WordPiece learned from the dataset, or the tokenizer of a pretrained transformer."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from retrieval.errors import RecipeError
from retrieval.query_text import QUERY_IDENTITY, QueryIdentity, encoder_texts, query_identity
from training.data.token_cache import PAD, UNKNOWN
from training.model import pretrained
from training.recipe.schema import Recipe
from training.recipe.sections import StaticEncoderRecipe, TransformerEncoderRecipe

TEXTS_PER_CALL = 10_000  # of the normalizer
PROBE = "Red SHOES ÉÑЖ"


def make_tokenizer(recipe: Recipe, texts: Sequence[str]) -> Tokenizer:
    """Return the run's tokenizer: learned from `texts` for a static encoder, else the transformer's own.

    Truncation is part of the tokenizer, so training, export and service truncate alike; padding is off.
    Raises RecipeError if the transformer has no fast tokenizer.
    """
    match recipe.encoder:
        case StaticEncoderRecipe(start_from=None, vocabulary_size=size):
            tokenizer = learn_wordpiece(texts, size)
        case StaticEncoderRecipe(start_from=str(source)):
            tokenizer = pretrained.tokenizer("encoder.start_from", source)
            # A start or end token would add the same vector to the mean of every text.
            tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        case TransformerEncoderRecipe(model=source):
            tokenizer = pretrained.tokenizer("encoder.model", source)
    set_truncation(tokenizer, recipe.encoder.max_tokens)
    return tokenizer


def query_identity_version(tokenizer: Tokenizer) -> QueryIdentity:
    """Return the version of `query_identity` to apply before a tokenizer: QUERY_IDENTITY, or 0 if it depends on case.

    A pretrained encoder that distinguishes case would lose by case folding.
    """
    if tokenizer.normalizer is None:
        return 0
    normalized = tokenizer.normalizer.normalize_str(PROBE)
    return QUERY_IDENTITY if normalized == normalized.lower() else 0


def set_truncation(tokenizer: Tokenizer, max_tokens: int) -> None:
    """Truncate at `max_tokens` and disable padding. Raises RecipeError if special tokens leave no room for the text."""
    special = tokenizer.num_special_tokens_to_add(False)
    if max_tokens <= special:
        raise RecipeError(
            f"encoder.max_tokens is {max_tokens}, but the tokenizer adds {special} special tokens. Set a greater value."
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)


def learn_wordpiece(texts: Sequence[str], size: int) -> Tokenizer:
    """Learn a lower-casing, accent-stripping WordPiece vocabulary of about `size` tokens from texts' identities.

    It is larger than `size` only if the texts have more distinct characters. The same texts give the same vocabulary.
    The library's trainer alone does not ensure that: it numbers the `##x` tokens in hash order and breaks ties by
    number (huggingface/tokenizers#1794). Therefore each `##x` gets its number before training.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    characters: set[str] = set()
    for start in range(0, len(texts), TEXTS_PER_CALL):
        chunk = encoder_texts(texts[start : start + TEXTS_PER_CALL], QUERY_IDENTITY)
        characters.update(normalizer.normalize_str("\n".join(chunk)))
    letters = sorted(character for character in characters if not character.isspace())
    learner = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    numbered = [PAD, UNKNOWN, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=numbered, limit_alphabet=len(letters), show_progress=False
    )
    learner.train_from_iterator(map(query_identity, texts), trainer)
    vocabulary = [PAD, UNKNOWN, *sorted(set(learner.get_vocab()) - {PAD, UNKNOWN})]
    model = models.WordPiece(
        vocab={token: place for place, token in enumerate(vocabulary)}, unk_token=UNKNOWN, max_input_chars_per_word=200
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
