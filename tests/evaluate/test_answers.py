"""Answer metrics against official scripts, by hand, and the ceiling of passages."""

import json
from pathlib import Path

import pytest
from rouge_score import rouge_scorer

from instructretro_jax.evaluate.answers import (
  METRICS,
  exact_match,
  f1,
  f1_first,
  holds_answer,
  likeliest,
  normalize,
  normalize_trivia,
)
from instructretro_jax.evaluate.rouge_tokens import RougeTokenizer
from instructretro_jax.questions.styles import STYLES

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'answers.json').read_text())


def scored(names, row):
  return [METRICS[name](row['prediction'], row['references']) for name in names]


def test_squad_2_and_trivia_qa_agree_with_the_official_scripts():
  assert len(GOLDEN) == 400
  for row in GOLDEN:
    assert scored(('exact_match', 'f1'), row) == pytest.approx(row['squad2'], abs=1e-12), row
    names = ('exact_match_trivia', 'f1_trivia')
    if normalize_trivia(row['prediction']):
      assert scored(names, row) == pytest.approx(row['trivia'], abs=1e-12), row


def test_squad_1_agrees_where_the_answer_has_a_word():
  # of nothing against nothing SQuAD 1.1 says F1 0 and exact match 1
  rows = [row for row in GOLDEN if normalize(row['prediction'])]
  assert len(rows) > 300
  for row in rows:
    assert scored(('exact_match', 'f1'), row) == pytest.approx(row['squad1'], abs=1e-12), row


def test_rouge_is_the_best_of_the_library_over_references():
  scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=True)
  for row in GOLDEN[:300]:
    found = [scorer.score(r, row['prediction']) for r in row['references']]
    for name in ('rouge1', 'rouge2', 'rougeL'):
      best = max(score[name].fmeasure for score in found)
      assert METRICS[name](row['prediction'], row['references']) == best


def test_normalisations_differ_at_punctuation():
  assert normalize('The  Quick, brown-fox!') == 'quick brownfox'
  assert normalize_trivia('The  Quick, brown-fox’s!') == 'quick brown fox s'


def test_any_reference_counts():
  assert exact_match('the Cat', ['dog', 'cat.']) == 1
  assert exact_match('cats', ['dog', 'cat']) == 0
  assert f1('red cat', ['dog', 'cat', 'a big red dog']) == pytest.approx(2 / 3)
  assert f1('', ['x']) == 0 and f1('the', ['a']) == 1


def test_f1_of_the_first_reference_parts_words_at_punctuation():
  assert f1_first('red cat', ['', 'red-cat', 'dog']) == 1
  assert f1_first('dog', ['red-cat', 'dog']) == 0 and f1_first('dog', ['the']) == 0


def test_summaries_are_judged_by_rouge_and_short_answers_are_not():
  assert STYLES['summary'].metrics == ('rouge1', 'rouge2', 'rougeL')
  assert 'f1' in STYLES['span'].metrics and 'rouge1' not in STYLES['full'].metrics
  assert {m for s in STYLES.values() for m in s.metrics} == METRICS.keys()


def test_an_answer_is_there_as_whole_words():
  assert holds_answer(['In the year, 1887 it rose.'], ['The year 1887']) == 1
  assert holds_answer(['In 18870.', 'art'], ['1887', 'ar', 'the']) == 0


@pytest.mark.parametrize(
  'text, other',
  [
    ('Москва стоит на реке Москве', 'Волга впадает в море'),
    ('北京是中国的首都', '上海在海边'),
    ('القاهرة عاصمة مصر', 'النيل نهر طويل'),
    ('दिल्ली भारत की राजधानी है', 'गंगा एक नदी'),
    ('서울은 대한민국의 수도이다', '부산은 항구 도시'),
    ('กรุงเทพเป็นเมืองหลวง', 'ๅๆ'),
    ('Αθήνα και Σπάρτη', 'Όλυμπος'),
  ],
)
def test_rouge_counts_words_of_every_script(text, other):
  for name in ('rouge1', 'rouge2', 'rougeL'):
    assert METRICS[name](text, [text]) == 1 and METRICS[name](text, [other]) == 0
  half = text[: len(text) // 2]
  assert 0 < METRICS['rouge1'](half, [text]) < 1


def test_rouge_of_scripts_without_spaces_goes_by_character():
  assert RougeTokenizer().tokenize('北京 2024年, running') == ['北', '京', '2024', '年', 'run']
  composed, apart = 'й', 'и\u0306'
  assert RougeTokenizer().tokenize(apart) == RougeTokenizer().tokenize(composed) == [composed]


def test_no_reference_is_an_error_in_words():
  for metric in METRICS.values():
    with pytest.raises(ValueError, match='there is no reference'):
      metric('x', [])
  with pytest.raises(ValueError, match='there is no reference'):
    holds_answer(['x'], [])


def test_the_likeliest_option_is_the_first_of_equal_ones_and_never_no_number():
  assert likeliest([-1.0, -0.5], ['yes', 'no']) == 'no'
  assert likeliest([-1.0] * 4, ['A', 'B', 'C', 'D']) == 'A'
  assert likeliest([-float('inf'), -9.0], ['yes', 'no']) == 'no'
  for wrong in ([float('nan'), -1.0], [-1.0, float('nan')], [-1.0], []):
    with pytest.raises(ValueError, match='have the log-probabilities'):
      likeliest(wrong, ['yes', 'no'])
