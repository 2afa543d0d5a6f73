"""The scorers as a plain port has them, in eager PyTorch.

Every one of a minibatch's 4B rows is looked up, averaged, mapped and scored by itself. The oracle of tests/parity, and the
other side of benchmarks/kbc.py.

Gradients, L2 and Adagrad are dense, as in the authors' Keras code. Rows are the B positives, then those with another relation,
another head and another tail.

Shapes: N rows, W words a phrase, D width of a word vector, F hidden width.
"""

import torch
from torch import nn
from torch.nn import functional

TERMS = ("ht", "hr", "rt")


class Factorized(nn.Module):
    """w (cos(a(h), b(t)) + cos(a(h), b(r)) + cos(a(r), b(t))), a and b linear maps and relu (Jastrzębski et al. 2018).

    share: 0 a pair of maps for each term, 1 one pair, 3 one map.
    """

    def __init__(self, relations: int, width: int, hidden: int = 1000, *, terms: tuple[str, ...] = TERMS, share: int = 1):
        super().__init__()
        self.terms, self.share = terms, share
        self.relations = nn.Embedding(relations, width)
        nn.init.uniform_(self.relations.weight, -0.05, 0.05)
        names = {self._name(side, term) for term in terms for side in "ab"}
        self.maps = nn.ModuleDict({name: nn.Linear(width, hidden) for name in sorted(names)})
        for linear in self.maps.values():
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """h, t [N, D], r int [N] -> [N], before batch normalisation."""
        x = {"h": h, "r": self.relations(r), "t": t}
        left = [torch.relu(self.maps[self._name("a", term)](x[term[0]])) for term in self.terms]
        right = [torch.relu(self.maps[self._name("b", term)](x[term[1]])) for term in self.terms]
        return self.w * sum(functional.cosine_similarity(a, b) for a, b in zip(left, right, strict=True))

    def penalty(self, r: torch.Tensor) -> torch.Tensor:
        """L2 beside that of the words, for positives with the relations r [B]."""
        return 1e-6 * ((self.relations.weight**2).sum() + self.w**2)

    def _name(self, side: str, term: str) -> str:
        return {0: f"{side}_{term}", 1: side, 3: "a"}[self.share]


class DNN(nn.Module):
    """w2 . relu(W1 [h; t; r] + b1) + b2 (Li et al. 2016; initialisation and L2 of Jastrzębski et al. 2018)."""

    def __init__(self, relations: int, width: int, hidden: int = 1000, *, relation_width: int = 200):
        super().__init__()
        self.relations = nn.Embedding(relations, relation_width)
        nn.init.uniform_(self.relations.weight, -0.02, 0.02)
        self.one, self.two = nn.Linear(2 * width + relation_width, hidden), nn.Linear(hidden, 1)
        for linear in (self.one, self.two):
            nn.init.normal_(linear.weight, std=0.05)
            nn.init.zeros_(linear.bias)

    def forward(self, h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """h, t [N, D], r int [N] -> [N]."""
        return self.two(torch.relu(self.one(torch.cat([h, t, self.relations(r)], 1))))[:, 0]

    def penalty(self, r: torch.Tensor) -> torch.Tensor:
        return 1e-6 * ((self.relations.weight**2).sum() + (self.two.weight**2).sum())


class Bilinear(nn.Module):
    """u_h^T M_r u_t, u = tanh(W v + b) (Li et al. 2016)."""

    def __init__(self, relations: int, width: int, hidden: int = 150):
        super().__init__()
        self.map = nn.Linear(width, hidden)
        self.matrices = nn.Parameter(torch.eye(hidden) + torch.empty(relations, hidden, hidden).uniform_(-0.2, 0.2))
        for x in self.map.parameters():
            nn.init.uniform_(x, -0.2, 0.2)

    def forward(self, h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """h, t [N, D], r int [N] -> [N]."""
        u, v = torch.tanh(self.map(h)), torch.tanh(self.map(t))
        return torch.einsum("nf,nfg,ng->n", u, self.matrices[r], v)

    def penalty(self, r: torch.Tensor) -> torch.Tensor:
        """A relation's matrix is pulled to the identity as often as the positives have the relation."""
        apart = self.matrices[r] - torch.eye(self.matrices.shape[1], dtype=self.matrices.dtype)
        return 1e-3 * ((self.map.weight**2).sum() + (self.map.bias**2).sum() + (apart**2).sum())


class Completion(nn.Module):
    """A scorer on a word table: means of word vectors, model, batch normalisation of the logit with Keras's constants."""

    def __init__(self, model: nn.Module, words: torch.Tensor, *, bn: bool):
        super().__init__()
        self.model, self.words = model, nn.Parameter(words)
        self.norm = nn.BatchNorm1d(1, eps=1e-3, momentum=0.01) if bn else None

    def forward(self, heads: torch.Tensor, r: torch.Tensor, tails: torch.Tensor) -> torch.Tensor:
        """heads, tails int [N, W] (0 = padding), r int [N] -> logits [N]."""
        z = self.model(self._mean(heads), r, self._mean(tails))
        return z if self.norm is None else self.norm(z[:, None])[:, 0]

    def _mean(self, words: torch.Tensor) -> torch.Tensor:
        mask = (words > 0)[..., None]
        return (functional.embedding(words, self.words) * mask).sum(1) / mask.sum(1).clamp(min=1)


def corrupt(triples: torch.Tensor, swaps: torch.Tensor) -> torch.Tensor:
    """Positives int [B, 3] and their corruptions: [4 B, 3]. Row i takes its relation, head, tail of the rows swaps[i]."""
    rows = triples.repeat(4, 1, 1)
    for corrupted, column, other in zip(rows[1:], (1, 0, 2), swaps.T, strict=True):
        corrupted[:, column] = triples[other, column]
    return rows.reshape(-1, 3)


def loss(
    net: Completion, phrases: torch.Tensor, triples: torch.Tensor, swaps: torch.Tensor, *, scale: float = 1.0, l2: float = 1e-6
) -> torch.Tensor:
    """The loss, scale * mean cross-entropy of the 4B rows + L2.

    Args:
      phrases: int [P, W], the words of each.
      triples, swaps: int [B, 3].
    """
    heads, r, tails = corrupt(triples, swaps).T
    probabilities = torch.sigmoid(net(phrases[heads], r, phrases[tails])).clamp(1e-7, 1 - 1e-7)
    truth = (torch.arange(len(r)) < len(triples)).to(probabilities.dtype)
    entropy = functional.binary_cross_entropy(probabilities, truth)
    return scale * entropy + l2 * (net.words**2).sum() + net.model.penalty(triples[:, 1])


def adagrad(net: Completion, lr: float = 0.01) -> torch.optim.Optimizer:
    """Keras's Adagrad: from zero, epsilon outside the root."""
    return torch.optim.Adagrad(net.parameters(), lr=lr, initial_accumulator_value=0, eps=1e-7)


def update(net: Completion, optimiser: torch.optim.Optimizer, phrases: torch.Tensor, *batch: torch.Tensor, **weights) -> float:
    """One step on a batch (triples, swaps); `weights` as for `loss`, which is returned."""
    optimiser.zero_grad()
    value = loss(net, phrases, *batch, **weights)
    value.backward()
    optimiser.step()
    return value.item()
