"""TOFU metric by metric, as in papers' codes: each metric tokenises and reads its set again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp

from eval.metrics.text import rouge
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder

BATCH = 32
Pairs = Sequence[tuple[str | None, str]]
_UTILITY = ("retain_eval", "real_authors", "world_facts")


@dataclass(frozen=True)
class Plain:
    """Each method returns metrics under the project's keys."""

    target: Any
    retain: Any
    encoder: Encoder
    sets: Mapping[str, Sequence[Example]]
    limit: int

    def likelihood(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name in ("forget_eval", "retain_eval"):
            key = f"tofu/{name.removesuffix('_eval')}"
            metrics[f"{key}/probability"] = float(np.exp(-self._nll(self.target, self._answers(name))).mean())
            metrics[f"{key}/paraphrased_probability"] = float(
                np.exp(-self._nll(self.target, self._paraphrased(name))).mean()
            )
            metrics[f"{key}/extraction_strength"] = self._strength(self._answers(name))
            rephrased = [(e.paraphrased_question, e.answer) for e in self.sets[name]]
            metrics[f"{key}/extraction_strength_paraphrased"] = self._strength(rephrased)
            metrics[f"{key}/exact_memorization"] = self._memorization(self._answers(name))
            ratio = self._ratio(self.target, name)
            metrics[f"{key}/truth_probability"] = float((1 / (1 + self._ratio(self.target, name))).mean())
            closeness = np.minimum(ratio, 1 / ratio)
            metrics[f"{key}/truth_ratio"] = float(
                (closeness if name == "forget_eval" else np.maximum(0, 1 - ratio)).mean()
            )
        for name in ("real_authors", "world_facts"):
            right = np.exp(-self._nll(self.target, self._answers(name)))
            wrong = np.exp(-self._perturbed(self.target, name)).sum(1)
            metrics[f"tofu/{name}/probability"] = float((right / (right + wrong)).mean())
            metrics[f"tofu/{name}/truth_ratio"] = float(
                np.maximum(0, 1 - self._ratio(self.target, name)).mean()
            )
        metrics["tofu/forget_quality_ks"] = float(
            ks_2samp(self._ratio(self.target, "forget_eval"), self._kept_ratio).statistic
        )
        for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "reference"):
            members, others = (getattr(self, f"_{attack}")(name) for name in ("forget_eval", "holdout"))
            metrics[f"tofu/mia/{attack}"] = _auc(members, others)
        return metrics

    def generation(self) -> dict[str, float]:
        metrics = {}
        for name in ("forget_eval", *_UTILITY):
            texts = self._generated([e.question or "" for e in self.sets[name]])
            scores = rouge([e.answer for e in self.sets[name]], texts)
            metrics[f"tofu/{name.removesuffix('_eval')}/rougeL_recall"] = float(scores.rougeL_recall.mean())
        return metrics

    def gradients(self) -> dict[str, float]:
        return {"tofu/mia/gradnorm": _auc(*(self._norms(name) for name in ("forget_eval", "holdout")))}

    # -- passes ----------------------------------------------------------------------------------------

    @property
    def _kept_ratio(self) -> np.ndarray:
        """The retain model's ratios, which these codes read from a log, so they are not timed twice."""
        if "ratio" not in self.__dict__:
            self.__dict__["ratio"] = self._ratio(self.retain, "forget_eval")
        return np.asarray(self.__dict__["ratio"])

    @torch.no_grad()
    def _read(self, model: Any, pairs: Pairs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return log-probabilities over the vocabulary [n, V] and labels [n] of each answer."""
        sequences = self.encoder.pairs(pairs)
        answers = []
        for start in range(0, len(sequences), BATCH):
            part = sequences[start : start + BATCH]
            width = max(len(s.ids) for s in part)
            ids, mask = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), width)
            for row, s in enumerate(part):
                ids[row, : len(s.ids)], mask[row, : len(s.ids)] = torch.from_numpy(s.ids), 1
            logprob = model(input_ids=ids, attention_mask=mask.long()).logits.float().log_softmax(-1)
            for row, s in enumerate(part):
                places = slice(s.answer_start - 1, len(s.ids) - 1)
                answers.append((logprob[row, places].clone(), torch.from_numpy(s.ids[s.answer_start :])))
        return answers

    def _logp(self, model: Any, pairs: Pairs) -> list[np.ndarray]:
        return [rows.gather(-1, y[:, None])[:, 0].numpy() for rows, y in self._read(model, pairs)]

    def _nll(self, model: Any, pairs: Pairs) -> np.ndarray:
        return np.array([-logp.astype(np.float64).mean() for logp in self._logp(model, pairs)])

    def _perturbed(self, model: Any, name: str) -> np.ndarray:
        count = len(self.sets[name][0].perturbed_answers)
        columns = [
            self._nll(model, [(e.question, e.perturbed_answers[k]) for e in self.sets[name]])
            for k in range(count)
        ]
        return np.stack(columns, axis=1)

    def _ratio(self, model: Any, name: str) -> np.ndarray:
        base = self._answers(name) if name in _UTILITY[1:] else self._paraphrased(name)
        return np.exp(self._nll(model, base) - self._perturbed(model, name).mean(1))

    def _answers(self, name: str) -> Pairs:
        return [(e.question, e.answer) for e in self.sets[name]]

    def _paraphrased(self, name: str) -> Pairs:
        return [(e.question, e.paraphrased_answer or "") for e in self.sets[name]]

    def _hits(self, pairs: Pairs) -> list[np.ndarray]:
        return [(rows.argmax(-1) == y).numpy()[:-1] for rows, y in self._read(self.target, pairs)]

    def _strength(self, pairs: Pairs) -> float:
        hits = self._hits(pairs)
        known = [len(hit) if hit.all() else int(np.argmin(hit[::-1])) for hit in hits]
        return float(np.mean([k / len(hit) for k, hit in zip(known, hits, strict=True)]))

    def _memorization(self, pairs: Pairs) -> float:
        return float(np.mean([hit.mean() for hit in self._hits(pairs)]))

    def _generated(self, questions: Sequence[str]) -> list[str]:
        texts = []
        tokenizer = self.encoder.tokenizer
        prompts = self.encoder.prompts(questions)
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            width = max(map(len, part))
            ids = torch.tensor([[self.encoder.pad_id] * (width - len(p)) + p for p in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            out = self.target.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.limit, do_sample=False,
                pad_token_id=self.encoder.pad_id,
            )  # fmt: skip
            texts += [
                str(t).strip() for t in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            ]
        return texts

    # -- attacks ---------------------------------------------------------------------------------------

    def _loss(self, name: str) -> np.ndarray:
        return self._nll(self.target, self._answers(name))

    def _zlib(self, name: str) -> np.ndarray:
        sizes = [len(zlib.compress(e.answer.encode())) for e in self.sets[name]]
        return self._nll(self.target, self._answers(name)) / np.array(sizes)

    def _min_k(self, name: str) -> np.ndarray:
        return np.array([_lowest(logp) for logp in self._logp(self.target, self._answers(name))])

    def _min_k_plus_plus(self, name: str) -> np.ndarray:
        scores = []
        for rows, y in self._read(self.target, self._answers(name)):
            mean = (rows.exp() * rows).sum(-1)
            spread = (rows.exp() * rows.square()).sum(-1) - mean.square()
            logp = rows.gather(-1, y[:, None])[:, 0]
            scores.append(_lowest(((logp - mean) / spread.clamp(min=1e-6).sqrt()).numpy()))
        return np.array(scores)

    def _reference(self, name: str) -> np.ndarray:
        pairs = self._answers(name)
        return self._nll(self.target, pairs) - self._nll(self.retain, pairs)

    def _norms(self, name: str) -> np.ndarray:
        norms = []
        for pair in self._answers(name):
            (s,) = self.encoder.pairs([pair])
            ids = torch.from_numpy(s.ids)[None]
            labels = ids.clone()
            labels[0, : s.answer_start] = -100
            self.target.zero_grad(set_to_none=True)
            self.target(input_ids=ids, labels=labels).loss.backward()
            norms.append(np.mean([float(p.grad.norm()) for p in self.target.parameters()]))
        self.target.zero_grad(set_to_none=True)
        return np.array(norms)


def _lowest(values: np.ndarray, k: float = 0.4) -> float:
    return float(-np.sort(values)[: max(1, int(k * len(values)))].mean())


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    return float((others[None] > members[:, None]).mean() + 0.5 * (others[None] == members[:, None]).mean())
