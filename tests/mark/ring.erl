%% SPDX-License-Identifier: Apache-2.0
%% A behaviour whose callbacks hand over to each other by tail calls, without end: through this module, by name and by fun.
-module(ring).
-export([again/3]).

-callback step(pid(), non_neg_integer(), [module()]) -> term().
-callback leap(pid(), non_neg_integer(), [module()]) -> term().

again(Pid, N, [Next | Rest]) ->
    Next:step(Pid, N, Rest ++ [Next]).
