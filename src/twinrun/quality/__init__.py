"""What a fast way costs in answers: tasks with checkable answers, every runner on the same items, paired intervals."""
