"""What is wrong with scans: duplicates, marks, conflicts; and how they are split."""
