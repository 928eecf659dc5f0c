"""A world of problems whose reasoning has branches, and whose truth is known.

Everything is drawn from seeds: problems, the reasoning of a rule-based teacher that weighs candidates at each step,
reasoning with faults, their wording and true structure, and so the true score of Algorithm 1. Small enough that
models of a million parameters learn it. One row in full:

    problem    Ann has 5 shells. Ben gets 4 more shells than Ann. Dan gets 2 fewer shells than Ann. Cat gets twice as
               many shells as Ben. How many shells has Cat?
    trace      Step 1. I could find Ben, Dan or Cat. I take Ben, since Cat needs it. Ben gets 4 more shells than Ann.
               How many shells has Ben? Ann has 5, so 5 + 4 = 9 and Ben has 9.
               Step 2. I could find Dan or Cat. I take Cat, since it is asked for. Cat gets twice as many shells as Ben.
               How many shells has Cat? Ben has 9, so 9 + 9 = 18 and Cat has 18.
               So the answer is 18.
    structure  [Meta-reasoning 1]: I could find Ben, Dan or Cat. I take Ben, since Cat needs it. Ben gets 4 more ...
               [Sub-problem 1]: How many shells has Ben?
               [Answer 1]: Ann has 5, so 5 + 4 = 9 and Ben has 9.
               [Meta-reasoning 2]: ...

    problems.py   what is asked: quantities that follow from one another
    reasoning.py  how it is solved: the teacher's path, paths with faults, true verdicts
    wording.py    how it is said: traces and their structures, in several wordings
    rows.py       rows for training and evaluation: of a GSRM, of a student, for a judge
"""
