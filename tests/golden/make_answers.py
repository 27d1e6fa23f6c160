"""Writes answers.json: scores that official scripts give to generated answers.

`python tests/golden/make_answers.py FOLDER`, where FOLDER holds, unpacked, the wheels of

- allennlp 0.9.0: allennlp/tools/squad_eval.py, the script of SQuAD 1.1;
- transformers 4.44.2: transformers/data/metrics/squad_metrics.py, after that of SQuAD 2.0;
- t5 0.9.4: t5/evaluation/qa_utils.py, with the normalisation of TriviaQA.
"""

import json
from pathlib import Path
import random
import re
import sys
import types

WORDS = re.findall(
  r'\S+',
  "the a an The An cat cats Paris U.S. 1,234 don't red-blue anthem theatre Zoë naïve it's A. 3.5% "
  '"quoted" ‘single’ ´acute` under_score New York ( dog ) and/or é . , ! --',
)


def module(path):
  """A script as a module, without its relative imports and its log."""
  text = re.sub(r'^(from \.\.\.|from absl|logger =).*$', '', path.read_text(), flags=re.M)
  found = types.ModuleType(path.stem)
  found.logging = types.SimpleNamespace(info=lambda *_: None)
  exec(text, found.__dict__)
  return found


def generated(rng):
  """A prediction and 1 to 3 references that differ from it by a few words."""
  base = [rng.choice(WORDS) for _ in range(rng.randint(0, 6))]
  references = []
  for _ in range(rng.randint(1, 3)):
    words = list(base)
    for _ in range(rng.randint(0, 2)):
      if words and rng.random() < 0.5:
        words.pop(rng.randrange(len(words)))
      else:
        words.insert(rng.randint(0, len(words)), rng.choice(WORDS))
    words = [word.upper() for word in words] if rng.random() < 0.3 else words
    references.append(rng.choice([' ', '  ', '\n']).join(words) or rng.choice(WORDS))
  return rng.choice([' ', '  ', '\t']).join(base) + rng.choice(['', '.', '!', ' ']), references


def main(folder):
  v1 = module(folder / 'allennlp/tools/squad_eval.py')
  v2 = module(folder / 'transformers/data/metrics/squad_metrics.py')
  trivia = module(folder / 't5/evaluation/qa_utils.py')
  rng, rows = random.Random(0), []
  for _ in range(400):
    prediction, references = generated(rng)
    best = lambda score: float(v1.metric_max_over_ground_truths(score, prediction, references))
    norm = trivia.normalize_trivia_qa
    found = trivia.qa_metrics([[norm(r) for r in references]], [norm(prediction)])
    rows.append(
      {
        'prediction': prediction,
        'references': references,
        'squad1': [best(v1.exact_match_score), best(v1.f1_score)],
        'squad2': [
          float(max(score(r, prediction) for r in references))
          for score in (v2.compute_exact, v2.compute_f1)
        ],
        'trivia': [found['em'] / 100, found['f1'] / 100],
      }
    )
  text = json.dumps(rows, ensure_ascii=False, indent=0)
  Path(__file__).with_name('answers.json').write_text(text + '\n')


if __name__ == '__main__':
  main(Path(sys.argv[1]))
