"""Many runs: listed, searched, labelled, compared, removed; all read from their directories, without torch."""
