"""Mathematics: data sets by name, and answers graded by math-verify in processes that can be killed."""
