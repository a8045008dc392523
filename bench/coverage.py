"""How often do intervals hold the truth? Simulated studies on the level of features, every interval by medfast's own code.

    python bench/coverage.py                   # 1,000 studies of 60 patients, 2,000 resamples: minutes on one core
    python bench/coverage.py --studies 200 --only frozen

A patient has a true state (36 % sick), 17 features of her own and ten frames that scatter a little around them. A logistic regression
is fitted on 1,500 patients and frozen; the truth is its AUC on 20,000 more, by patient (for the naive interval, by image). Every
study then has fresh patients.

frozen   BCa over patients (what `evaluate` reports) has to cover in .93 to .97, the naive interval over images in less than .60;
         percentile, DeLong, logit-DeLong and Newcombe are printed beside them.
folds    five-fold cross-validation within each study: how often the out-of-fold interval holds the mean AUC of its own five models,
         and that of the procedure over all studies; and .5 where the features say nothing.
seeds    five seeds that blur one model: the spread of the seeds, patients of the first seed, the two-way bootstrap.
few      6 to 30 patients: Newcombe (what `evaluate` reports), logit-DeLong (`few='logit-DeLong'`), BCa, DeLong.
others   slope, balanced accuracy, average precision and PPV at a prevalence of .05, gain of one model over another.
"""
import argparse
import sys
import time
import warnings

import numpy as np
from scipy.special import expit, logit
from scipy.stats import bootstrap, norm
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from medfast.calibration import slope_row
from medfast.metrics import How, _counts, ap_row, area, auc_row, bca, curves, delong, logit_delong_row, newcombe_limits, two_class_rows
from medfast.pairs import paired_gain
from medfast.seeds import evaluate_seeds
from medfast.table import OUT_OF_FOLD, Predictions

FEATURES, FRAMES, PREVALENCE, BETWEEN_FRAMES = 17, 10, .36, .35


def patients(rng, n, shift, features=FEATURES):
    "Truth, features of all frames (patients by frames by features)."
    y = rng.random(n) < PREVALENCE
    own = rng.normal(size=(n, features)) + shift*y[:, None]*np.linspace(1, .2, features)
    return y, own[:, None] + BETWEEN_FRAMES*rng.normal(size=(n, FRAMES, features))


def fit(y, x): return LogisticRegression(max_iter=500).fit(x.reshape(-1, x.shape[-1]), np.repeat(y, FRAMES))
def scores(model, x): return expit(x @ model.coef_[0] + model.intercept_[0])
def auc(y, s): return float(area(*curves(y, s)(np.ones(len(y)))))


def percentile(y, s, how):
    "Percentile limits with the same resamples as the BCa ones."
    points = curves(y, s)
    take = lambda i, axis=-1: area(*points(_counts(np.atleast_2d(i), len(y)))).reshape(i.shape[:-1])
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        warnings.simplefilter('ignore')
        drawn = bootstrap((np.arange(len(y)),), take, n_resamples=how.n_resamples, method='percentile', vectorized=True, rng=np.random.default_rng(how.seed)).bootstrap_distribution
    return np.nanquantile(drawn, [.025, .975])


def plain_delong(y, s):
    value,variance = delong(y, s)
    return value + norm.ppf([.025, .975])*np.sqrt(variance)


def limits(row): return row['low'], row['high']


class Tally:
    "Counts how often limits hold a truth, and how wide they are."
    def __init__(self): self.hits, self.widths = {}, {}
    def add(self, name, lim, truth):
        self.hits.setdefault(name, []).append(bool(lim[0] <= truth <= lim[1]))
        self.widths.setdefault(name, []).append(lim[1] - lim[0])
    def share(self, name): return float(np.mean(self.hits[name]))
    def show(self, title):
        print(f'\n{title}\n{"":46}{"covers":>8}{"+-":>7}{"width":>8}')
        for name,hits in self.hits.items():
            p = np.mean(hits)
            print(f'{name:46}{p:8.3f}{1.96*np.sqrt(p*(1 - p)/len(hits)):7.3f}{np.nanmean(self.widths[name]):8.3f}', flush=True)


def frozen_model(rng, shift):
    "A model fitted on 1,500 patients, and its AUC by patient and by image on 20,000 more."
    model = fit(*patients(rng, 1500, shift))
    y,x = patients(rng, 20_000, shift)
    p = scores(model, x)
    return model, auc(y, p.mean(1)), auc(np.repeat(y, FRAMES), p.ravel())


def frozen(o):
    rng, ok = np.random.default_rng(o.seed), True
    for shift in (.55, .87):
        model,truth,by_image = frozen_model(rng, shift)
        tally, start = Tally(), time.perf_counter()
        for i in range(o.studies):
            y,x = patients(rng, o.patients, shift)
            if not 2 <= y.sum() <= len(y) - 2: continue
            p = scores(model, x)
            s, how = p.mean(1), How(seed=i, n_resamples=o.resamples)
            tally.add('BCa over patients (evaluate)', limits(auc_row(y, s, how)), truth)
            tally.add('percentile over patients', percentile(y, s, how), truth)
            tally.add('DeLong over patients', plain_delong(y, s), truth)
            tally.add('logit-DeLong over patients', limits(logit_delong_row(y, s, how)), truth)
            tally.add('Newcombe over patients', newcombe_limits(auc(y, s), y.sum(), (~y).sum()), truth)
            tally.add('DeLong over images (naive)', plain_delong(np.repeat(y, FRAMES), p.ravel()), by_image)
            if i < o.studies//5: tally.add('BCa over images (naive), first fifth of studies', limits(auc_row(np.repeat(y, FRAMES), p.ravel(), How(seed=i, n_resamples=min(o.resamples, 1000)))), by_image)
        tally.show(f'Frozen model, AUC {truth:.3f} by patient and {by_image:.3f} by image on 20,000; {len(tally.hits["DeLong over patients"])} studies of {o.patients} patients, {FRAMES} frames each, {o.resamples} resamples, {time.perf_counter() - start:.0f} s')
        if shift == .55:
            ok = .93 <= tally.share('BCa over patients (evaluate)') <= .97 and tally.share('DeLong over images (naive)') < .60 and tally.share('BCa over images (naive), first fifth of studies') < .60
            print('gate:', 'passed' if ok else 'FAILED')
    return ok


def out_of_fold(rng, y, x, seed):
    "Out-of-fold probabilities by patient, and the five models."
    s, models = np.zeros(len(y)), []
    for train,test in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(y, y, np.arange(len(y))):
        models.append(fit(y[train], x[train]))
        s[test] = scores(models[-1], x[test]).mean(1)
    return s, models


def folds(o):
    for shift in (.55, 0.):
        rng = np.random.default_rng(o.seed + 1)
        truth_y,truth_x = patients(rng, 2000, shift)
        found, start = [], time.perf_counter()
        for i in range(o.studies):
            y,x = patients(rng, o.patients, shift)
            if min(y.sum(), (~y).sum()) < 5: continue
            s,models = out_of_fold(rng, y, x, i)
            own = np.mean([auc(truth_y, scores(m, truth_x).mean(1)) for m in models]) if shift else .5
            found.append((limits(auc_row(y, s, How(seed=i, n_resamples=o.resamples))), own, auc(y, s)))
        tally, procedure = Tally(), np.mean([own for _,own,_ in found])
        for lim,own,_ in found:
            if shift: tally.add('its own five models', lim, own)
            tally.add('the procedure' if shift else '.5, without any signal', lim, procedure)
        tally.show(f'Out-of-fold, five folds, mean AUC of the models {procedure:.3f}, of the pooled folds {np.mean([a for *_,a in found]):.3f}; {len(found)} studies, {time.perf_counter() - start:.0f} s\n({OUT_OF_FOLD})')
    return True


def seeds(o):
    "Scores of a seed: what all seeds see, a blur of each patient, and a loss or gain that the seed has everywhere."
    rng, n_seeds, tally, start = np.random.default_rng(o.seed + 2), 5, Tally(), time.perf_counter()
    lift, between, blur = 2**.5*norm.ppf(.85)*np.sqrt(1 + .3**2), .2, .3
    many_y = rng.random(400_000) < PREVALENCE
    truth = np.mean([auc(many_y, rng.normal(size=400_000)*np.sqrt(1 + blur**2) + (lift + between*g)*many_y) for g in norm.ppf(np.linspace(.05, .95, 10))])
    for i in range(o.studies//2):
        y = rng.random(o.patients) < PREVALENCE
        if min(y.sum(), (~y).sum()) < 5: continue
        shared = rng.normal(size=o.patients)
        each = [expit(shared + blur*rng.normal(size=o.patients) + (lift + between*rng.normal())*y - 1) for _ in range(n_seeds)]
        values = np.array([auc(y, s) for s in each])
        half = student.ppf(.975, n_seeds - 1)*values.std(ddof=1)/np.sqrt(n_seeds)
        tally.add('seeds alone (Student t)', (values.mean() - half, values.mean() + half), truth)
        tally.add('patients alone, first seed (BCa)', limits(auc_row(y, each[0], How(seed=i, n_resamples=o.resamples))), truth)
        preds = [Predictions.from_arrays(y, s, patients=range(o.patients)) for s in each]
        tally.add('two-way BCa over patients and seeds', limits(evaluate_seeds(preds, metrics=['auc'], n_resamples=o.resamples, seed=i).loc['auc']), truth)
    tally.show(f'Five seeds, mean AUC {truth:.3f}; {len(tally.hits["seeds alone (Student t)"])} studies of {o.patients} patients, {time.perf_counter() - start:.0f} s')
    return True


def few(o):
    rng = np.random.default_rng(o.seed + 3)
    for n,prevalence in ((6, .4), (12, .36), (19, .36), (30, .1)):
        for true in (.5, .85, .95):
            tally = Tally()
            for i in range(o.studies):
                y = rng.random(n) < prevalence
                while not 0 < y.sum() < n: y = rng.random(n) < prevalence
                s = rng.normal(size=n) + 2**.5*norm.ppf(true)*y
                tally.add('Newcombe score (evaluate)', limits(auc_row(y, s)), true)
                tally.add('logit-DeLong, corrected for continuity', limits(logit_delong_row(y, s)), true)
                if min(y.sum(), (~y).sum()) > 1: tally.add('DeLong (two of each class)', plain_delong(y, s), true)
                if i < o.studies//3:
                    points = curves(y, s)
                    low,high,_ = bca(lambda c: area(*points(c)), n, How(seed=i, n_resamples=500))
                    tally.add('BCa, first third of the studies', (low, high), true)
            tally.show(f'{n} patients, prevalence {prevalence}, AUC {true}')
    return True


def others(o):
    "Binormal scores with known truth: slope 1, and the rest from four million patients."
    rng, tally, start = np.random.default_rng(o.seed + 4), Tally(), time.perf_counter()
    lift, t = 1.47, .4
    probability = lambda z: expit(logit(PREVALENCE) + lift*z - lift**2/2)
    se, sp = 1 - norm.cdf((logit(t) - logit(PREVALENCE) + lift**2/2)/lift - lift), norm.cdf((logit(t) - logit(PREVALENCE) + lift**2/2)/lift)
    big_y = rng.random(1_000_000) < PREVALENCE
    big = probability(rng.normal(size=len(big_y)) + lift*big_y)
    truths = {'balanced accuracy': (se + sp)/2, 'sensitivity': se, 'ppv': se*.05/(se*.05 + (1 - sp)*.95), 'npv': sp*.95/(sp*.95 + (1 - se)*.05), 'accuracy': .05*se + .95*sp}
    ap = {p: float(ap_row(big_y, big, prevalence=p)['value']) for p in (None, .05)}
    gain = auc(big_y, big) - float(norm.cdf(lift/np.sqrt(2*(1 + .8**2))))
    for i in range(o.studies//2):
        y = rng.random(o.patients) < PREVALENCE
        if min(y.sum(), (~y).sum()) < 5: continue
        z = rng.normal(size=o.patients) + lift*y
        p, how = probability(z), How(seed=i, n_resamples=o.resamples)
        rows = two_class_rows(y, p, p >= t, How(seed=i, n_resamples=50), .05)
        for name,true in truths.items(): tally.add(f'{name}, at prevalence .05' if name in ('ppv', 'npv', 'accuracy') else name, limits(rows[name]), true)
        for prevalence,name in ((None, 'average precision'), (.05, 'average precision, at prevalence .05')): tally.add(name, limits(ap_row(y, p, how, prevalence)), ap[prevalence])
        slope = slope_row(y, p, how)
        if np.isfinite(slope['value']): tally.add('calibration slope', limits(slope), 1.)
        rival = expit(z + .8*rng.normal(size=o.patients))
        pair = [Predictions.from_arrays(y, s, patients=range(o.patients)) for s in (p, rival)]
        tally.add('gain in AUC over a blurred rival', limits(paired_gain(*pair, n_resamples=o.resamples, seed=i).iloc[0]), gain)
    tally.show(f'Other numbers; {len(tally.hits["sensitivity"])} studies of {o.patients} patients, {time.perf_counter() - start:.0f} s')
    return True


PARTS = dict(frozen=frozen, folds=folds, seeds=seeds, few=few, others=others)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,value in dict(studies=1000, patients=60, resamples=2000, seed=0).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--only', nargs='*', choices=PARTS, default=list(PARTS))
    o = p.parse_args()
    passed = [PARTS[name](o) for name in o.only]
    if not all(passed): sys.exit('The coverage is not what the intervals promise.')


if __name__ == '__main__': main()
