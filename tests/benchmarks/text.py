"""
Text tower: fifty prompts to embeddings, hf_clap against transformers' `ClapModel`, the same RoBERTa base.

    python tests/benchmarks/text.py [--rounds 7] [--threads 2] [--json RESULT.json]

Tokenizing is part of it. transformers gets all prompts as one batch padded to the longest; embeddings must agree to
1e-4, in bfloat16 with a cosine of at least 0.999.
"""

import transformers
from clap_pair import TEMPLATE, labels, pair_folder
from side_by_side import DTYPES, Comparison, Run, agree_embeddings, main
from torch.nn import functional as F

import hf_clap
from hf_clap.embedding import embed_texts

PROMPTS = [TEMPLATE.format(label) for label in labels(50)]


def peer() -> Run:
    folder = pair_folder() / "transformers"
    model = transformers.ClapModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda: F.normalize(
        model.get_text_features(**tokenizer(PROMPTS, padding=True, return_tensors="pt")).pooler_output, dim=-1
    )


def ours(dtype: str) -> Run:
    folder = pair_folder() / dtype
    model = hf_clap.HfClapModel.from_pretrained(folder).eval()
    processor = hf_clap.HfClapProcessor.from_pretrained(folder)
    return lambda: embed_texts(model, processor, PROMPTS)


if __name__ == "__main__":
    contenders = {"transformers": peer}
    comparisons = []
    for dtype in DTYPES:
        contenders[f"hf_clap, {dtype}"] = lambda dtype=dtype: ours(dtype)
        comparisons.append(
            Comparison(f"text tower, 50 prompts, {dtype}", f"hf_clap, {dtype}", "transformers", agree_embeddings)
        )
    main(__doc__, contenders, comparisons)
