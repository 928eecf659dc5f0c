"""A world of problems whose reasoning has branches, and whose truth is known.

Everything is drawn from seeds: problems, the reasoning of a rule-based teacher that weighs candidates at each step,
reasoning with faults, their wording and true structure, and so the true score of Algorithm 1. Small enough that
models of a million parameters learn it. One row in full:

    problem    Ann has 7 shells. Ben has 4 more shells than Ann. Dan has 2 fewer shells than Ann. Cat has 5 more
               shells than Ben. How many shells has Cat?
    trace      Step 1. I could find Ben, Dan or Cat. Cat needs Ben and Ann is known, so I take Ben. How many shells has
               Ben? 7 + 4 = 11, so Ben has 11.
               Step 2. I could find Dan or Cat. Cat is asked for and Ben is known, so I take Cat. How many shells has
               Cat? 11 + 5 = 16, so Cat has 16.
               So the answer is 16.
    structure  [Meta-reasoning 1]: I could find Ben, Dan or Cat. Cat needs Ben and Ann is known, so I take Ben.
               [Sub-problem 1]: How many shells has Ben?
               [Answer 1]: 7 + 4 = 11, so Ben has 11.
               [Meta-reasoning 2]: ...

    problems.py   what is asked: quantities that follow from one another
    reasoning.py  how it is solved: the teacher's path, paths with faults, true verdicts
    wording.py    how it is said: traces and their structures, in several wordings
    rows.py       rows for training and evaluation: of a GSRM, of a student, for a judge
"""
