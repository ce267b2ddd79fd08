%% SPDX-License-Identifier: Apache-2.0
%% What compiled code can do, each construct with a result that says how it went: value, or class, reason and the stack
%% trace with its lines. A plain and a marked module must say the same.
%%
%%     erl -enable-feature maybe_expr -noshell -pa EBIN -run constructs main OUT
-module(constructs).
-feature(maybe_expr, enable).
-compile(nowarn_deprecated_catch).
-compile({no_auto_import, [processes/0]}).
-compile({inline, [tripled/1]}).
-on_load(loaded/0).
-export([main/1, loaded/0, down/1, down/2, even/1, odd/1, stub/1, many/20, woken/2, forever/1, by_name/2, identity/1]).
-export([first_receive/0, stacked/1]).

-record(item, {a = 1, b :: integer() | undefined}).
-mine([{x, 1}, "two", <<3>>, 4.5]).

main([Out]) ->
    ok = logger:set_primary_config(level, none),
    {ok, File} = file:open(Out, [write, {encoding, utf8}]),
    [io:format(File, "~w ~0tp~n", [Name, Result]) || {Name, Result} <- all()],
    ok = file:close(File),
    halt().

all() ->
    [{Name, outcome(Do)} || {Name, Do} <- control() ++ data() ++ calls() ++ processes() ++ behaviours() ++ about()].

%% Frames of this module and of those beside it; others differ from release to release and say nothing.
outcome(Do) ->
    try
        Do()
    catch
        Class:Reason:Stack ->
            {Class, Reason, [{M, F, args(A), proplists:get_value(line, L)} || {M, F, A, L} <- Stack, is_ours(M)]}
    end.

args(A) when is_list(A) -> length(A);
args(A) -> A.

is_ours(M) -> lists:member(M, [constructs, held, server, states, ring, ring_a, ring_b]).

loaded() -> persistent_term:put(constructs, loaded).

control() ->
    [
        {guards, fun() -> [guarded(X) || X <- [5, 1, {#{a => 1}, 0}, <<"abc">>]] end},
        {function_clause, fun() -> guarded(none) end},
        {case_clause, fun() -> in_case(none) end},
        {if_clause, fun() -> in_if(0) end},
        {badmatch, fun() -> matched(1) end},
        {maybe_all, fun() -> [in_maybe(X) || X <- [{ok, {ok, 1}}, {error, x}, {ok, 3}]] end},
        {try_of, fun() -> [caught(F) || F <- raising()] end},
        {try_after, fun() -> {outcome(fun() -> with_after(fun() -> error(inner) end) end), erase(after_)} end},
        {old_catch, fun() -> [old_catch(F) || F <- [fun() -> 7 end, fun() -> throw(x) end, fun() -> exit(y) end]] end},
        {old_catch_error, fun() -> element(1, element(2, old_catch(fun() -> error(z) end))) end},
        {nested_try, fun() -> nested(fun() -> error(first) end) end},
        {raise, fun() -> raised() end},
        {on_load, fun() -> persistent_term:get(constructs) end}
    ].

guarded(X) when is_integer(X), X > 3 orelse X =:= 1 -> {number, X};
guarded({X, Y}) when map_size(X) > Y -> map;
guarded(X) when byte_size(X) > 2 -> binary.

in_case(X) ->
    case X of
        1 -> one;
        [_ | _] -> list
    end.

in_if(X) ->
    if
        X > 0 -> positive;
        X < 0 -> negative
    end.

matched(X) ->
    {ok, Y} = X,
    Y.

in_maybe(X) ->
    maybe
        {ok, A} ?= X,
        {ok, B} ?= A,
        B
    else
        {error, E} -> {failed, E};
        Other -> {other, Other}
    end.

raising() ->
    [fun() -> 1 end, fun() -> throw(a) end, fun() -> error(b) end, fun() -> exit(c) end, fun() -> 1 + atom() end].

atom() -> an_atom.

caught(F) ->
    try F() of
        V -> {value, V}
    catch
        throw:T -> {thrown, T};
        C:E:S -> {C, E, [{F1, args(A), proplists:get_value(line, L)} || {?MODULE, F1, A, L} <- S]}
    after
        put(after_, 1)
    end.

with_after(F) ->
    try
        F()
    after
        put(after_, 2)
    end.

old_catch(F) ->
    case catch F() of
        {'EXIT', R} -> {exited, R};
        V -> V
    end.

nested(F) ->
    try
        try
            F()
        catch
            error:E -> throw({again, E})
        after
            put(inner, done)
        end
    catch
        throw:T -> {T, erase(inner)}
    end.

raised() ->
    try
        error(original)
    catch
        C:E:S -> erlang:raise(C, {more, E}, S)
    end.

data() ->
    [
        {list_comprehension, fun() -> [X * Y || X <- [1, 2, 3], Y <- [1, 2], X rem 2 =:= 1] end},
        {binary_comprehension, fun() -> <<<<(X + 1)>> || <<X>> <= <<1, 2, 255>>>> end},
        {records, fun() -> record(3) end},
        {badrecord, fun() -> field(no_record) end},
        {binaries, fun() -> [split(B) || B <- [<<"abc">>, <<"x", 233/utf8, "yz">>, <<1>>]] end},
        {maps, fun() -> lists:sort(maps:to_list(updated(#{a => 1}))) end},
        {badmap, fun() -> updated(1) end},
        {floats, fun() -> [floats(2.0), outcome(fun() -> floats(x) end)] end},
        {big_numbers, fun() -> 1 bsl 100 + 16#ffffffffffffffff * 3 end},
        {inlined, fun() -> [sixfold(3), outcome(fun() -> sixfold(a) end)] end},
        {literals, fun() -> [{"text", #{deep => [1, [2, {3.5, <<"bin">>}]]}}, lists:duplicate(3, 'an atom')] end},
        {bif_tail, fun() -> [element_of(a, #{a => 1}), outcome(fun() -> element_of(a, #{}) end)] end},
        {bif_tail_badmap, fun() -> element_of(x, y) end},
        {bif_tail_framed, fun() -> named([]) end}
    ].

record(X) ->
    R = #item{b = X},
    S = R#item{a = 7},
    {S#item.a, S#item.b, S}.

field(R) -> R#item.a.

split(<<A:3, B:5, C/utf8, Rest/binary>>) -> {A, B, C, Rest, <<C/utf16, (byte_size(Rest)):16/little>>};
split(Other) -> Other.

updated(#{a := X} = M) -> M#{a := X + 1, b => [X | maps:keys(M)]}.

floats(X) -> X * 1.5 + math:sqrt(X) / 2.0 - float(round(X)).

tripled(X) -> X * 3.
sixfold(X) -> tripled(X) + tripled(X).

element_of(K, M) -> maps:get(K, M).

named(L) ->
    Sum = lists:sum(L),
    put(sum, Sum),
    atom_to_list(Sum).

calls() ->
    [
        {deep, fun() -> deep(3) end},
        {tail, fun() -> down(100000) =:= down(1) end},
        {mutual, fun() -> even(100000) =:= even(2) end},
        {tail_through_fun, fun() -> down(10000000, fun(N, F) -> down(N, F) end) =:= down(1, fun(N, F) -> down(N, F) end) end},
        {tail_of_all_kinds, fun() -> outcome(fun() -> forever({3000, fun() -> error(bottom) end}) end) end},
        {stack_is_constant, fun() -> [stacked(N) =:= stacked(1) || N <- [10, 1000, 100000]] end},
        {ring, fun() -> [M:step(self(), 30000, [ring_b, ring_a]) =:= M:step(self(), 0, []) || M <- [ring_a, ring_b]] end},
        {named_fun, fun() -> (fun G(0) -> done; G(N) -> G(N - 1) end)(5) end},
        {fun_info, fun() -> [erlang:fun_info(fun(X) -> X end, I) || I <- [name, arity, env]] end},
        {local_fun, fun() -> lists:map(fun sixfold/1, [1, 2]) end},
        {many_arguments, fun() -> apply(?MODULE, many, lists:seq(1, 20)) end},
        {badarity, fun() -> (fun(X) -> X end)(1, 2) end},
        {badfun, fun() -> called(none) end},
        {undef, fun() -> (identity(?MODULE)):no_such_function(1) end},
        {apply, fun() -> by_name(identity, [a]) end},
        {nif_stub, fun() -> stub(1) end}
    ].

deep(0) -> error(bottom);
deep(N) -> 1 + deep(N - 1).

down(0) -> process_info(self(), stack_size);
down(N) -> down(N - 1).

down(0, _) -> process_info(self(), stack_size);
down(N, F) -> F(N - 1, F).

even(0) -> process_info(self(), stack_size);
even(N) -> odd(N - 1).

odd(0) -> no;
odd(N) -> even(N - 1).

forever({0, F}) ->
    F();
forever({N, F}) ->
    Next = {N - 1, F},
    case N rem 4 of
        0 -> forever(Next);
        1 -> ?MODULE:forever(Next);
        2 -> apply(?MODULE, forever, [Next]);
        3 -> (fun forever/1)(Next)
    end.

stacked(0) -> process_info(self(), stack_size);
stacked(N) ->
    case N rem 2 of
        0 -> ?MODULE:stacked(N - 1);
        1 -> by_name(stacked, [N - 1])
    end.

many(A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T) ->
    [A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T].

called(F) -> F().
by_name(F, Args) -> apply(?MODULE, F, Args).
identity(X) -> X.
stub(_) -> erlang:nif_error(not_loaded).

processes() ->
    [
        {selective_receive, fun() -> selective() end},
        {receive_after, fun() -> receive nothing -> no after 1 -> timeout end end},
        {receive_at_entry, fun() -> self() ! {other, 1}, self() ! {stop, 23}, first_receive() end},
        {reference_receive, fun() -> [pinged(N) || N <- [1, 2, 3]] end},
        {hibernate, fun() -> hibernated() end},
        {linked, fun() -> linked() end},
        {upgrade, fun() -> upgraded() end}
    ].

selective() ->
    self() ! {a, 1},
    self() ! b,
    receive
        b -> receive {a, X} -> X after 0 -> no end
    after 1000 -> timeout
    end.

first_receive() ->
    receive
        {stop, X} -> X;
        {other, _} -> first_receive()
    end.

pinged(N) ->
    Pid = spawn_link(fun() -> receive {From, Ref, X} -> From ! {Ref, X + 1} end end),
    Ref = make_ref(),
    Pid ! {self(), Ref, N},
    receive {Ref, X} -> X end.

hibernated() ->
    Self = self(),
    Pid = spawn_link(fun() -> erlang:hibernate(?MODULE, woken, [Self, 1]) end),
    Pid ! wake,
    receive awake -> awake end.

woken(Pid, 1) -> receive wake -> Pid ! awake end.

linked() ->
    process_flag(trap_exit, true),
    Pid = spawn_link(fun() -> deep(2) end),
    receive {'EXIT', Pid, {Reason, [{M, F, A, _} | _]}} -> {Reason, M, F, A} end.

%% A process goes on in old code while the module is loaded once more, and ends in the code that is new by then.
upgraded() ->
    Self = self(),
    Pid = spawn_link(fun() -> held:waits(Self, []) end),
    receive {Pid, ready} -> ok end,
    {module, held} = code:load_file(held),
    Was = erlang:check_process_code(Pid, held),
    Pid ! go,
    receive {Pid, Said} -> ok end,
    Pid ! renew,
    receive {Pid, renewed} -> ok end,
    {Was, Said, erlang:check_process_code(Pid, held), code:soft_purge(held)}.

behaviours() ->
    [
        {gen_server, fun() -> served() end},
        {gen_server_crash, fun() -> crashed() end},
        {gen_statem, fun() -> stated() end}
    ].

served() ->
    {ok, Pid} = server:start(),
    gen_server:cast(Pid, {add, 2}),
    gen_server:cast(Pid, other),
    Pid ! drop,
    Answers = [gen_server:call(Pid, R) || R <- [items, {add, 5}, {by, ?MODULE, identity},
                                               {apply, fun(S) -> {reply, applied, S} end}, items]],
    Stacks = [gen_server:call(Pid, {loop, N}) || N <- [1, 100000]],
    gen_server:stop(Pid),
    {Answers, length(lists:usort(Stacks))}.

crashed() ->
    {ok, Pid} = server:start(),
    try
        gen_server:call(Pid, crash)
    catch
        exit:{{Reason, [{M, F, A, L} | _]}, _} -> {Reason, M, F, A, proplists:get_value(line, L)}
    end.

stated() ->
    {ok, Pid} = states:start(),
    Answers = [gen_statem:call(Pid, R) || R <- [work, hello, work, work, work]],
    Ref = monitor(process, Pid),
    receive {'DOWN', Ref, process, Pid, _} -> {Answers, persistent_term:get(states)} end.

about() ->
    [
        {exports, fun() -> lists:sort(?MODULE:module_info(exports)) end},
        {functions, fun() -> lists:sort(?MODULE:module_info(functions)) end},
        {attributes, fun() -> [A || {K, _} = A <- ?MODULE:module_info(attributes), K =:= mine orelse K =:= on_load] end},
        {compiled, fun() -> proplists:get_keys(?MODULE:module_info(compile)) =/= [] end},
        {current_stacktrace, fun() -> here() end}
    ].

here() ->
    {current_stacktrace, Stack} = process_info(self(), current_stacktrace),
    [{F, A, proplists:get_value(line, L)} || {?MODULE, F, A, L} <- Stack].
